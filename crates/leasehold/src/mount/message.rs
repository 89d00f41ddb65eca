//! What is to be known of FUSE's own messages in order to pass them on, and the one that fuser does not tell the outcome of. The rest
//! is the kernel's and fuser's business.
//!
//! Source: `include/uapi/linux/fuse.h`. All numbers are in the machine's byte order.

use leasehold_core::range::ByteRange;

/// The longest write that the kernel of another machine sends at once, and the longest read: a message must fit into a
/// socket's default buffer (net.core.wmem_default, 212,992 bytes).
pub(super) const REMOTE_CALL_BYTES: u32 = 128 << 10;
/// The longest message, with what is around the bytes of a write.
pub(super) const MESSAGE_BYTES_MAX: usize = REMOTE_CALL_BYTES as usize + 4096;

/// `struct fuse_in_header`, and `struct fuse_out_header`.
const REQUEST_HEADER_BYTES: usize = 40;
const REPLY_HEADER_BYTES: usize = 16;

/// What a request wants: its `opcode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opcode(u32);

impl Opcode {
    const FORGET: Opcode = Opcode(2);
    const SETATTR: Opcode = Opcode(4);
    const UNLINK: Opcode = Opcode(10);
    const RMDIR: Opcode = Opcode(11);
    const RENAME: Opcode = Opcode(12);
    const WRITE: Opcode = Opcode(16);
    const INTERRUPT: Opcode = Opcode(36);
    const DESTROY: Opcode = Opcode(38);
    const BATCH_FORGET: Opcode = Opcode(42);
    const FALLOCATE: Opcode = Opcode(43);
    const RENAME2: Opcode = Opcode(45);
    const COPY_FILE_RANGE: Opcode = Opcode(47);

    /// Whether it may break a lease, so that somebody may want to know which program did.
    pub fn may_break(self) -> bool {
        let all = [
            Opcode::SETATTR,
            Opcode::UNLINK,
            Opcode::RMDIR,
            Opcode::RENAME,
            Opcode::WRITE,
            Opcode::FALLOCATE,
            Opcode::RENAME2,
            Opcode::COPY_FILE_RANGE,
        ];
        all.contains(&self)
    }

    pub fn has_reply(self) -> bool {
        !matches!(self, Opcode::FORGET | Opcode::BATCH_FORGET | Opcode::INTERRUPT)
    }
}

/// The number by which the kernel knows a request until it has its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Unique(pub u64);

/// What a request says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub opcode: Opcode,
    pub unique: Unique,
    pub pid: u32,
}

impl Head {
    /// `None` if it is no whole request, or one of a machine with another byte order.
    pub fn of(request: &[u8]) -> Option<Head> {
        let header = request.first_chunk::<REQUEST_HEADER_BYTES>()?;
        let length = u32::from_ne_bytes(part(header, 0));
        (length as usize == request.len()).then(|| Head {
            opcode: Opcode(u32::from_ne_bytes(part(header, 4))),
            unique: Unique(u64::from_ne_bytes(part(header, 8))),
            pid: u32::from_ne_bytes(part(header, 32)),
        })
    }

    /// Of which request the caller was interrupted, if that is what this one says.
    pub fn interrupts(&self, request: &[u8]) -> Option<Unique> {
        let body = request.get(REQUEST_HEADER_BYTES..)?.first_chunk()?;
        (self.opcode == Opcode::INTERRUPT).then(|| Unique(u64::from_ne_bytes(*body)))
    }
}

/// Which request a reply is for, and whether it says that it worked.
pub(crate) fn replied(reply: &[u8]) -> Option<(Unique, bool)> {
    let header = reply.first_chunk::<REPLY_HEADER_BYTES>()?;
    Some((Unique(u64::from_ne_bytes(part(header, 8))), part(header, 4) == [0; 4]))
}

/// The request after which a session ends.
pub(super) fn destroy() -> Vec<u8> {
    let mut request = vec![0; REQUEST_HEADER_BYTES];
    request[..4].copy_from_slice(&(REQUEST_HEADER_BYTES as u32).to_ne_bytes());
    request[4..8].copy_from_slice(&Opcode::DESTROY.0.to_ne_bytes());
    request
}

/// To the kernel: that it shall forget what it keeps of these bytes of a file, and the file's size
/// (`FUSE_NOTIFY_INVAL_INODE`).
pub(super) fn forget(node: u64, range: ByteRange) -> [u8; 40] {
    const INVAL_INODE: u32 = 2;
    let offset = i64::try_from(range.start()).unwrap_or(i64::MAX);
    // Without an end, for the kernel: zero.
    let length = i64::try_from(range.end()).map_or(0, |end| end - offset);
    let mut word = [0; 40];
    word[..4].copy_from_slice(&40_u32.to_ne_bytes());
    word[4..8].copy_from_slice(&INVAL_INODE.to_ne_bytes());
    word[16..24].copy_from_slice(&node.to_ne_bytes());
    word[24..32].copy_from_slice(&offset.to_ne_bytes());
    word[32..].copy_from_slice(&length.to_ne_bytes());
    word
}

fn part<const BYTES: usize>(header: &[u8], at: usize) -> [u8; BYTES] {
    *header[at..].first_chunk().expect("the header is longer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_names_another_request() {
        let mut request = destroy();
        assert_eq!(Head::of(&request), Some(Head { opcode: Opcode::DESTROY, unique: Unique(0), pid: 0 }));
        request[4..8].copy_from_slice(&36_u32.to_ne_bytes());
        request[..4].copy_from_slice(&48_u32.to_ne_bytes());
        request.extend(77_u64.to_ne_bytes());
        let head = Head::of(&request).unwrap();
        assert_eq!(head.interrupts(&request), Some(Unique(77)));
        assert!(!head.opcode.has_reply());
    }

    #[test]
    fn what_is_cut_off_or_of_another_byte_order_is_no_request() {
        let whole = destroy();
        assert_eq!(Head::of(&whole[..39]), None);
        let mut swapped = whole.clone();
        swapped[..4].reverse();
        assert_eq!(Head::of(&swapped), None);
        assert_eq!(replied(&whole[..15]), None);
        assert_eq!(replied(&[0; 16]), Some((Unique(0), true)));
    }
}
