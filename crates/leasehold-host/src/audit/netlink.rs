//! The RDMA devices' live memory regions, from the kernel: `NETLINK_RDMA`, the client `RDMA_NL_NLDEV`.
//!
//! Two kinds of dump: the devices (`RDMA_NLDEV_CMD_GET`), then of each device its memory regions
//! (`RDMA_NLDEV_CMD_RES_MR_GET`). Numbers and layout are those of `include/uapi/rdma/rdma_netlink.h` and `linux/netlink.h`:
//!
//! ```text
//! message    length:u32  type:u16  flags:u16  sequence:u32  port:u32  attributes..      padded to 4
//! attribute  length:u16  type:u16  value..                                              padded to 4
//! region     RES_MR { RES_MR_ENTRY { RES_PID | RES_KERN_NAME, RES_MRLEN, RES_IOVA?, DRIVER { STRING "odp", .. }? } .. }
//! ```
//!
//! What comes is parsed as what anybody may have sent: no length in it is believed.

use rustix::io::Errno;
use rustix::net::netlink::{RDMA, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const HEADER_BYTES: usize = 16;
/// Bits of an attribute's type that are no part of its number: nested, network byte order.
const NLA_TYPE_MASK: u16 = 0x3fff;

const RDMA_NL_NLDEV: u16 = 5;
const CMD_GET: u16 = 1;
const CMD_RES_MR_GET: u16 = 13;

const ATTR_DEV_INDEX: u16 = 1;
const ATTR_DEV_NAME: u16 = 2;
const ATTR_RES_PID: u16 = 28;
const ATTR_RES_KERN_NAME: u16 = 29;
const ATTR_RES_MR: u16 = 40;
const ATTR_RES_MR_ENTRY: u16 = 41;
const ATTR_RES_IOVA: u16 = 44;
const ATTR_RES_MRLEN: u16 = 45;
const ATTR_DRIVER: u16 = 52;
const ATTR_DRIVER_STRING: u16 = 54;

/// A live memory region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) device: String,
    pub(crate) owner: Owner,
    pub(crate) bytes: u64,
    /// Where the owner has it in its memory. Kernels tell it seldom.
    pub(crate) address: Option<u64>,
    /// Whether the device faults its pages in, which are not pinned then.
    pub(crate) is_on_demand: bool,
}

/// Who registered a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Process(u32),
    Kernel(String),
    /// A process of another PID namespace, or one that is gone.
    Hidden,
}

/// All that the kernel told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Regions {
    /// By index.
    pub(crate) devices: BTreeMap<u32, String>,
    pub(crate) regions: Vec<Region>,
}

/// Why there is nothing to be seen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unseen {
    /// A kernel without RDMA.
    #[error("the kernel has no RDMA subsystem loaded")]
    Absent,
    #[error("the kernel refuses it: {0}")]
    Refused(Errno),
    #[error("the kernel's answer makes no sense: {0}")]
    Garbled(&'static str),
    #[error("this copy of a host does not have it")]
    NotRecorded,
}

/// What a kernel answered, in a copy of a host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Recorded {
    /// Datagrams, in hexadecimal digits.
    datagrams: Vec<String>,
    /// The number of the error that it refused with.
    errno: Option<i32>,
}

impl Recorded {
    pub(crate) fn regions(&self) -> Result<Regions, Unseen> {
        if let Some(errno) = self.errno {
            return Err(refused(Errno::from_raw_os_error(errno)));
        }
        let mut regions = Regions::default();
        for datagram in &self.datagrams {
            let bytes = unhex(datagram).ok_or(Unseen::Garbled("no hexadecimal digits"))?;
            regions.take(&bytes)?;
        }
        Ok(regions)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|digit| digit.try_into().ok()))
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// Asks this kernel.
pub(crate) fn live() -> Result<Regions, Unseen> {
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(RDMA))
            .map_err(refused)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(2)))
        .map_err(refused)?;
    let mut regions = Regions::default();
    let mut dump = |request: Vec<u8>| -> Result<Vec<u32>, Unseen> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&socket, &request, SendFlags::empty(), &kernel).map_err(refused)?;
        let mut buffer = vec![0; 1 << 17];
        loop {
            let (_, length) =
                rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()).map_err(refused)?;
            let datagram =
                buffer.get(..length).ok_or(Unseen::Garbled("a longer datagram than was asked for"))?;
            if regions.take(datagram)? == Progress::Done {
                return Ok(regions.devices.keys().copied().collect());
            }
        }
    };
    for device in dump(request(CMD_GET, None))? {
        dump(request(CMD_RES_MR_GET, Some(device)))?;
    }
    Ok(regions)
}

fn refused(error: Errno) -> Unseen {
    match error {
        // Without the module nobody speaks the protocol, or nobody listens to it.
        Errno::PROTONOSUPPORT | Errno::CONNREFUSED | Errno::AFNOSUPPORT => Unseen::Absent,
        error => Unseen::Refused(error),
    }
}

fn request(command: u16, device: Option<u32>) -> Vec<u8> {
    let attribute = device.map(|index| attribute(ATTR_DEV_INDEX, &index.to_ne_bytes())).unwrap_or_default();
    message(RDMA_NL_NLDEV << 10 | command, NLM_F_REQUEST | NLM_F_DUMP, &attribute)
}

fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + payload.len()).expect("messages of ours are short");
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("attributes of ours are short");
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Whether a dump goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    More,
    Done,
}

impl Regions {
    /// Takes in one datagram.
    fn take(&mut self, mut bytes: &[u8]) -> Result<Progress, Unseen> {
        while !bytes.is_empty() {
            let length = u32_at(bytes, 0).ok_or(Unseen::Garbled("half a message"))? as usize;
            let kind = u16_at(bytes, 4).ok_or(Unseen::Garbled("half a message"))?;
            let payload = bytes.get(HEADER_BYTES..length).ok_or(Unseen::Garbled("half a message"))?;
            if kind == NLMSG_DONE {
                return Ok(Progress::Done);
            }
            if kind == NLMSG_ERROR {
                let error = u32_at(payload, 0).ok_or(Unseen::Garbled("half an error"))?;
                return match error.cast_signed().checked_neg() {
                    Some(0) => Ok(Progress::Done),
                    Some(error @ 1..4096) => Err(refused(Errno::from_raw_os_error(error))),
                    _ => Err(Unseen::Garbled("an error without a number")),
                };
            }
            if kind >> 10 == RDMA_NL_NLDEV {
                self.take_device(payload)?;
            }
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(Progress::More)
    }

    fn take_device(&mut self, payload: &[u8]) -> Result<(), Unseen> {
        let (mut index, mut name, mut list) = (None, None, None);
        for attribute in Attributes(payload) {
            match attribute? {
                (ATTR_DEV_INDEX, value) => index = u32_at(value, 0),
                (ATTR_DEV_NAME, value) => name = Some(string(value)),
                (ATTR_RES_MR, value) => list = Some(value),
                _ => {}
            }
        }
        if let (Some(index), Some(name)) = (index, &name) {
            self.devices.insert(index, name.clone());
        }
        let device = name
            .or_else(|| index.and_then(|index| self.devices.get(&index).cloned()))
            .unwrap_or_else(|| "?".to_owned());
        for entry in Attributes(list.unwrap_or_default()) {
            if let (ATTR_RES_MR_ENTRY, value) = entry? {
                self.regions.push(region(&device, value)?);
            }
        }
        Ok(())
    }
}

fn region(device: &str, entry: &[u8]) -> Result<Region, Unseen> {
    let mut region = Region {
        device: device.to_owned(),
        owner: Owner::Hidden,
        bytes: 0,
        address: None,
        is_on_demand: false,
    };
    for attribute in Attributes(entry) {
        match attribute? {
            (ATTR_RES_PID, value) => {
                // 0 is what a reader in another PID namespace gets.
                let pid = u32_at(value, 0).filter(|pid| *pid != 0);
                region.owner = pid.map_or(Owner::Hidden, Owner::Process);
            }
            (ATTR_RES_KERN_NAME, value) => region.owner = Owner::Kernel(string(value)),
            (ATTR_RES_MRLEN, value) => region.bytes = u64_at(value).unwrap_or(0),
            (ATTR_RES_IOVA, value) => region.address = u64_at(value),
            (ATTR_DRIVER, value) => {
                for attribute in Attributes(value) {
                    let (kind, value) = attribute?;
                    region.is_on_demand |= kind == ATTR_DRIVER_STRING && string(value) == "odp";
                }
            }
            _ => {}
        }
    }
    Ok(region)
}

/// The attributes in some bytes: number and value.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), Unseen>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let garbled = || Unseen::Garbled("half an attribute");
        Some((|| {
            let length = usize::from(u16_at(bytes, 0).ok_or_else(garbled)?);
            let kind = u16_at(bytes, 2).ok_or_else(garbled)?;
            let value = bytes.get(4..length).ok_or_else(garbled)?;
            self.0 = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            Ok((kind & NLA_TYPE_MASK, value))
        })())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn u64_at(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

fn string(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// Datagrams as a kernel sends them, for the tests of whoever needs regions.
#[cfg(test)]
pub(crate) mod made {
    use super::*;

    pub(crate) fn device(index: u32, name: &str) -> Vec<u8> {
        let payload = [attribute(ATTR_DEV_INDEX, &index.to_ne_bytes()), named(name)].concat();
        message(RDMA_NL_NLDEV << 10 | CMD_GET, 2, &payload)
    }

    fn named(name: &str) -> Vec<u8> {
        attribute(ATTR_DEV_NAME, format!("{name}\0").as_bytes())
    }

    pub(crate) fn regions(index: u32, name: &str, entries: &[Vec<u8>]) -> Vec<u8> {
        let entries = entries.iter().map(|entry| attribute(ATTR_RES_MR_ENTRY | 1 << 15, entry));
        let list = attribute(ATTR_RES_MR, &entries.collect::<Vec<_>>().concat());
        let payload = [attribute(ATTR_DEV_INDEX, &index.to_ne_bytes()), named(name), list].concat();
        message(RDMA_NL_NLDEV << 10 | CMD_RES_MR_GET, 2, &payload)
    }

    pub(crate) fn region(pid: u32, bytes: u64, address: Option<u64>) -> Vec<u8> {
        let mut entry = attribute(ATTR_RES_MRLEN, &bytes.to_ne_bytes());
        entry.extend(attribute(ATTR_RES_PID, &pid.to_ne_bytes()));
        if let Some(address) = address {
            entry.extend(attribute(ATTR_RES_IOVA, &address.to_ne_bytes()));
        }
        entry
    }

    pub(crate) fn on_demand(pid: u32, bytes: u64) -> Vec<u8> {
        let strings = [&b"odp\0"[..], b"explicit\0"].map(|text| attribute(ATTR_DRIVER_STRING, text));
        [region(pid, bytes, None), attribute(ATTR_DRIVER, &strings.concat())].concat()
    }

    pub(crate) fn done() -> Vec<u8> {
        message(NLMSG_DONE, 2, &[0; 4])
    }

    pub(crate) fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(datagrams: &[Vec<u8>]) -> Result<Regions, Unseen> {
        let mut regions = Regions::default();
        for datagram in datagrams {
            regions.take(datagram)?;
        }
        Ok(regions)
    }

    #[test]
    fn requests_are_as_the_kernels_headers_have_them() {
        // struct nlmsghdr { 16, RDMA_NL_GET_TYPE(5, 1), NLM_F_REQUEST | NLM_F_DUMP, 0, 0 }
        let expected = [16_u32.to_ne_bytes(), [0; 4], [0; 4], [0; 4]].concat();
        let made = request(CMD_GET, None);
        assert_eq!(made[..4], expected[..4]);
        assert_eq!(u16_at(&made, 4), Some(5121));
        assert_eq!(u16_at(&made, 6), Some(0x301));
        let made = request(CMD_RES_MR_GET, Some(7));
        assert_eq!(u32_at(&made, 0), Some(24));
        assert_eq!(u16_at(&made, 4), Some(5133));
        let attribute = [8_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat();
        assert_eq!(made[16..20], attribute);
        assert_eq!(u32_at(&made, 20), Some(7));
    }

    #[test]
    fn regions_have_their_device_owner_length_and_whether_they_are_pinned() {
        let kernel =
            [attribute(ATTR_RES_MRLEN, &8_u64.to_ne_bytes()), attribute(ATTR_RES_KERN_NAME, b"nvme_rdma\0")];
        let list = [
            made::region(4711, 1 << 20, Some(0x7f00_0000)),
            made::on_demand(5, 4096),
            made::region(0, 1, None),
            kernel.concat(),
        ];
        let first = [made::device(0, "mlx5_0"), made::device(1, "rxe0"), made::done()].concat();
        let regions = parsed(&[first, made::regions(0, "mlx5_0", &list), made::done()]).unwrap();
        assert_eq!(regions.devices, BTreeMap::from([(0, "mlx5_0".to_owned()), (1, "rxe0".to_owned())]));
        let expect = |owner, bytes, address, is_on_demand| Region {
            device: "mlx5_0".to_owned(),
            owner,
            bytes,
            address,
            is_on_demand,
        };
        assert_eq!(
            regions.regions,
            [
                expect(Owner::Process(4711), 1 << 20, Some(0x7f00_0000), false),
                expect(Owner::Process(5), 4096, None, true),
                expect(Owner::Hidden, 1, None, false),
                expect(Owner::Kernel("nvme_rdma".to_owned()), 8, None, false),
            ]
        );
    }

    #[test]
    fn a_dump_ends_with_done_and_an_error_is_told() {
        let mut regions = Regions::default();
        assert_eq!(regions.take(&made::device(0, "a")), Ok(Progress::More));
        assert_eq!(regions.take(&made::done()), Ok(Progress::Done));
        let error = |errno: i32| message(NLMSG_ERROR, 0, &[(-errno).to_ne_bytes(), [0; 4]].concat());
        assert_eq!(regions.take(&error(1)), Err(Unseen::Refused(Errno::PERM)));
        assert_eq!(regions.take(&error(0)), Ok(Progress::Done));
        let recorded = Recorded { datagrams: Vec::new(), errno: Some(93) };
        assert_eq!(recorded.regions(), Err(Unseen::Absent), "EPROTONOSUPPORT");
    }

    #[test]
    fn what_is_cut_off_anywhere_is_an_error_and_no_panic() {
        let whole = made::regions(3, "mlx5_0", &[made::region(1, 2, Some(3)), made::on_demand(1, 2)]);
        parsed(std::slice::from_ref(&whole)).unwrap();
        for length in 1..whole.len() {
            assert!(parsed(&[whole[..length].to_vec()]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parsed(&[bytes]);
        }

        #[test]
        fn any_changed_byte_is_parsed_or_refused(at in 0_usize..120, to in any::<u8>()) {
            let mut bytes = made::regions(3, "mlx5_0", &[made::region(1, 2, Some(3)), made::on_demand(1, 2)]);
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = parsed(&[bytes]);
        }
    }
}
