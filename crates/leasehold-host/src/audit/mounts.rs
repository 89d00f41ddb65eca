//! The mounts that matter, and what is found about them.
//!
//! Without paths those are all that hold files that stay: local and network filesystems, FUSE. An overlay only as the
//! root (in a container), tmpfs only when it is asked for: every host has many that no data lie on. A filesystem of which a
//! daemon or another machine answers is never touched, unless a path on it is asked for.

use super::finding::Finding;
use super::host::Host;
use super::look::{self, Answer};
use super::{AuditError, catalogue};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

/// A device number, as mountinfo and /proc/PID/maps have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Device {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// What a type of filesystem is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// On a disk of this machine.
    Disk,
    /// Another machine has the files.
    Network,
    /// A daemon has them.
    Fuse,
    /// Other filesystems have them.
    Overlay,
    /// Memory has them.
    Memory,
    /// There are none that DMA could go to.
    Other,
}

/// A mounted filesystem; several mounts of the same are one, by the shortest mount point.
#[derive(Clone, Debug, Serialize)]
pub struct Mount {
    /// Where.
    #[serde(serialize_with = "lossy", rename = "path")]
    pub point: PathBuf,
    /// `ext4`, `xfs`, `fuse.sshfs`, ..
    #[serde(rename = "type")]
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Of this mount, and of the filesystem.
    pub options: Vec<String>,
    /// Whether files can share blocks; `None` if that is not known.
    pub reflink: Option<bool>,
    /// Whether it has checksums of data; `None` if that is not known.
    pub checksums: Option<bool>,
    /// Whether files are mapped straight to the device.
    pub dax: bool,
    /// Whether nothing can be written.
    pub read_only: bool,
    /// Whether it answered in time, of those that were asked.
    pub answered: Option<bool>,
    #[serde(skip)]
    pub(crate) device: Device,
    #[serde(skip)]
    pub(crate) family: Family,
    #[serde(skip)]
    is_asked_for: bool,
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// All that is mounted, and those of it that matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mounts {
    pub(crate) all: Vec<Mount>,
    pub(crate) chosen: Vec<Mount>,
}

impl Mounts {
    /// Those that the paths are on; without paths, those that matter.
    pub(crate) fn of(host: &Host, paths: &[PathBuf], unseen: &mut Vec<String>) -> Result<Mounts, AuditError> {
        let path = "/proc/self/mountinfo";
        let text = host.bytes(path).map_err(|error| AuditError::Unreadable { path: path.into(), error })?;
        let all: Vec<Mount> = text.split(|byte| *byte == b'\n').filter_map(parse).collect();
        let mut chosen = match paths {
            [] => by_default(&all),
            paths => asked_for(&all, host, paths)?,
        };
        look_at(host, &mut chosen, unseen);
        Ok(Mounts { all, chosen })
    }

    /// Whether files of this device stay: none of a memfd or of /dev/shm.
    pub(crate) fn is_storage(&self, device: Device) -> bool {
        self.all.iter().any(|mount| {
            mount.device == device
                && matches!(mount.family, Family::Disk | Family::Network | Family::Fuse | Family::Overlay)
        })
    }

    /// Whether a file is, by its name, on a filesystem that is judged.
    pub(crate) fn is_chosen(&self, file: &Path) -> bool {
        let mount = covering(&self.all, file);
        mount.is_some_and(|mount| self.chosen.iter().any(|chosen| chosen.device == mount.device))
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.chosen.iter().flat_map(Mount::findings).collect()
    }
}

/// One line of mountinfo, as proc(5) has it.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = Device::parse(str(fields.nth(2)?), 10)?;
    let point = PathBuf::from(OsString::from_vec(unescaped(fields.nth(1)?)));
    let options = fields.next()?;
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = str(&unescaped(fields.next()?)).to_owned();
    let source = str(&unescaped(fields.next()?)).to_owned();
    let mut options: Vec<String> =
        [options, fields.next().unwrap_or_default()].iter().flat_map(|text| split(str(text))).collect();
    options.dedup();
    let family = Family::of(&kind);
    let has = |option: &str| options.iter().any(|other| other == option);
    let checksums = match kind.as_str() {
        "btrfs" => Some(!has("nodatasum") && !has("nodatacow")),
        "ext2" | "ext3" | "ext4" | "xfs" | "f2fs" | "jfs" | "tmpfs" => Some(false),
        // On by default, and a property of each dataset.
        "zfs" => Some(true),
        _ => None,
    };
    let reflink = match kind.as_str() {
        "btrfs" => Some(true),
        "ext2" | "ext3" | "ext4" | "f2fs" | "jfs" | "tmpfs" => Some(false),
        _ => None,
    };
    let (dax, read_only) = (has("dax") || has("dax=always"), has("ro"));
    Some(Mount {
        point,
        kind,
        source,
        options,
        reflink,
        checksums,
        dax,
        read_only,
        answered: None,
        device,
        family,
        is_asked_for: false,
    })
}

fn str(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("?")
}

fn split(options: &str) -> impl Iterator<Item = String> + '_ {
    options.split(',').filter(|option| !option.is_empty()).map(str::to_owned)
}

/// Spaces, tabs, newlines and backslashes are octal there.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let octal = behind.first_chunk::<3>().filter(|_| *first == b'\\').and_then(|digits| {
            let digit = |byte: u8| matches!(byte, b'0'..=b'7').then(|| u16::from(byte - b'0'));
            let [high, middle, low] = digits.map(digit);
            u8::try_from(high? * 64 + middle? * 8 + low?).ok()
        });
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &behind[3..] } else { behind };
    }
    bytes
}

impl Device {
    /// `8:1`, or in hexadecimal `08:01`.
    pub(crate) fn parse(text: &str, radix: u32) -> Option<Device> {
        let (major, minor) = text.split_once(':')?;
        let number = |text| u32::from_str_radix(text, radix).ok();
        Some(Device { major: number(major)?, minor: number(minor)? })
    }
}

impl Family {
    fn of(kind: &str) -> Family {
        match kind {
            "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "f2fs" | "zfs" | "bcachefs" | "jfs" | "nilfs2"
            | "reiserfs" | "ntfs3" | "ocfs2" | "gfs2" | "udf" | "hfsplus" => Family::Disk,
            "nfs" | "nfs4" | "cifs" | "smb3" | "ceph" | "lustre" | "gpfs" | "afs" | "9p" | "beegfs"
            | "orangefs" | "pvfs2" | "coda" => Family::Network,
            "overlay" => Family::Overlay,
            "tmpfs" | "ramfs" | "hugetlbfs" => Family::Memory,
            // Desktops' and containers' views of other things than files.
            "fuse.portal" | "fuse.gvfsd-fuse" | "fuse.lxcfs" | "fuse.snapfuse" => Family::Other,
            "fuse" | "fuseblk" | "virtiofs" => Family::Fuse,
            kind if kind.starts_with("fuse.") => Family::Fuse,
            _ => Family::Other,
        }
    }
}

fn by_default(all: &[Mount]) -> Vec<Mount> {
    let matters = |mount: &&Mount| match mount.family {
        Family::Disk | Family::Network | Family::Fuse => true,
        Family::Overlay => mount.point == Path::new("/"),
        Family::Memory | Family::Other => false,
    };
    once_each(all.iter().filter(matters).cloned())
}

/// Of each filesystem the shortest mount point; a writable mount before one that is not.
fn once_each(mounts: impl Iterator<Item = Mount>) -> Vec<Mount> {
    let mut best: BTreeMap<(Device, String), Mount> = BTreeMap::new();
    for mount in mounts {
        // Each dataset of ZFS and each subvolume of btrfs may have a device of its own, or none: the source tells more.
        let rank = |mount: &Mount| (mount.read_only, mount.point.as_os_str().len());
        let key = (mount.device, mount.source.clone());
        match best.get(&key) {
            Some(other) if rank(other) <= rank(&mount) => {}
            _ => {
                best.insert(key, mount);
            }
        }
    }
    let mut mounts: Vec<Mount> = best.into_values().collect();
    mounts.sort_by(|a, b| a.point.cmp(&b.point));
    mounts
}

/// The mounts that these paths are on.
fn asked_for(all: &[Mount], host: &Host, paths: &[PathBuf]) -> Result<Vec<Mount>, AuditError> {
    let absolute: Vec<PathBuf> = paths.iter().map(|path| lexical(path)).collect();
    let mut mounts = Vec::new();
    for ((path, absolute), answer) in paths.iter().zip(&absolute).zip(host.look(&absolute)) {
        let (place, answered) = match answer {
            Answer::There { path, .. } => (path, true),
            // Where it is by its name; what is behind symbolic links is not to be known.
            Answer::None => (absolute.clone(), false),
            Answer::Failed(error) => {
                return Err(AuditError::Path { path: path.clone(), reason: error });
            }
        };
        let Some(mount) = covering(all, &place) else {
            return Err(AuditError::Path { path: path.clone(), reason: "it is on no mount".to_owned() });
        };
        if mount.family == Family::Other {
            let reason = format!(
                "it is on {}, mounted on {}, which has no files that DMA could go to; name a directory on a \
                 filesystem that has",
                mount.kind,
                mount.point.display()
            );
            return Err(AuditError::Path { path: path.clone(), reason });
        }
        let mut mount = mount.clone();
        mount.is_asked_for = true;
        mount.answered = Some(answered);
        mounts.push(mount);
    }
    Ok(once_each(mounts.into_iter()))
}

/// The mount that a path is on, by its name.
fn covering<'a>(all: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let covers = |mount: &&Mount| path.starts_with(&mount.point);
    // Of two mounts on the same point, the later one is on top.
    all.iter().filter(covers).max_by_key(|mount| mount.point.components().count())
}

/// The path from the root, without `.` and `..`, as far as its text tells.
fn lexical(path: &Path) -> PathBuf {
    let from = match path.is_absolute() {
        true => PathBuf::new(),
        false => std::env::current_dir().unwrap_or_default(),
    };
    let mut absolute = PathBuf::from("/");
    for component in from.components().chain(path.components()) {
        match component {
            Component::Normal(name) => absolute.push(name),
            Component::ParentDir => {
                absolute.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    absolute
}

/// Asks the filesystems of local disks whether they answer, and XFS whether it shares blocks.
fn look_at(host: &Host, mounts: &mut [Mount], unseen: &mut Vec<String>) {
    let is_asked = |mount: &Mount| mount.family == Family::Disk && mount.answered != Some(false);
    let points: Vec<PathBuf> =
        mounts.iter().filter(|mount| is_asked(mount)).map(|mount| mount.point.clone()).collect();
    let answers = host.look(&points);
    for (mount, answer) in mounts.iter_mut().filter(|mount| is_asked(mount)).zip(answers) {
        match answer {
            Answer::There { reflink, .. } => {
                mount.answered = Some(true);
                mount.reflink = reflink.or(mount.reflink);
                if mount.kind == "xfs" && reflink.is_none() {
                    unseen.push(format!(
                        "whether {} shares blocks (`xfs_info {0} | grep reflink` tells)",
                        mount.point.display()
                    ));
                }
            }
            Answer::None => mount.answered = Some(false),
            Answer::Failed(error) => unseen.push(format!("{}: {error}", mount.point.display())),
        }
    }
    for mount in mounts.iter().filter(|mount| mount.answered.is_none() && mount.family != Family::Disk) {
        unseen.push(format!(
            "{} ({}): not touched, it might not answer; name it to have it looked at",
            mount.point.display(),
            mount.kind
        ));
    }
}

impl Mount {
    fn name(&self) -> String {
        self.point.to_string_lossy().into_owned()
    }

    fn found(&self, entry: &'static catalogue::Entry) -> Finding {
        Finding::new(entry, self.name()).with("mount", self.name()).seen(format!(
            "{} on {}",
            self.kind,
            if self.source.is_empty() { "?" } else { &self.source }
        ))
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|other| other == option)
    }

    fn findings(&self) -> Vec<Finding> {
        if self.answered == Some(false) {
            let limit = look::LIMIT.as_secs();
            return vec![self.found(&catalogue::MOUNT_HUNG).seen(format!("no answer in {limit} s"))];
        }
        if self.read_only {
            return Vec::new();
        }
        let mut found = Vec::new();
        if self.dax {
            found.push(self.found(&catalogue::MOUNT_DAX).seen("mounted with dax"));
        }
        if self.kind == "xfs" && self.reflink == Some(true) {
            found.push(self.found(&catalogue::MOUNT_REFLINK).seen("reflink=1, and no checksums of data"));
        }
        if matches!(self.kind.as_str(), "btrfs" | "zfs") && self.checksums == Some(true) {
            found.push(self.found(&catalogue::MOUNT_CHECKSUM).seen("checksums of data are on"));
        }
        if let Some(option) = ["nobarrier", "barrier=0"].into_iter().find(|option| self.has(option)) {
            found.push(self.found(&catalogue::MOUNT_NOBARRIER).seen(format!("mounted with {option}")));
        }
        if self.has("autodefrag") {
            found.push(self.found(&catalogue::MOUNT_AUTODEFRAG).seen("mounted with autodefrag"));
        }
        match self.family {
            Family::Network => found.push(self.found(&catalogue::MOUNT_NETWORK)),
            Family::Fuse => found.push(self.found(&catalogue::MOUNT_FUSE)),
            Family::Overlay => found.push(self.found(&catalogue::MOUNT_OVERLAY)),
            Family::Memory if self.is_asked_for => found.push(self.found(&catalogue::MOUNT_TMPFS)),
            Family::Memory | Family::Disk | Family::Other => {}
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(line: &str) -> Mount {
        parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn a_line_of_mountinfo_is_read_with_its_optional_fields_and_escapes() {
        let line = r"42 27 254:17 /sub /srv/my\040data\011x rw,relatime shared:1 master:2 - xfs /dev/vd\134a rw,attr2,dax=always";
        let mount = mount(line);
        assert_eq!(mount.point, Path::new("/srv/my data\tx"));
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("xfs", "/dev/vd\\a"));
        assert_eq!(mount.device, Device { major: 254, minor: 17 });
        assert_eq!(mount.options, ["rw", "relatime", "rw", "attr2", "dax=always"]);
        assert!(mount.dax && !mount.read_only);
    }

    #[test]
    fn what_is_no_line_of_mountinfo_is_skipped() {
        for line in ["", "1 2", "1 2 x:y / / rw - ext4 a rw", "1 2 8:1 / / rw", "1 2 8:1 / / rw -"] {
            assert!(parse(line.as_bytes()).is_none(), "{line}");
        }
    }

    #[test]
    fn several_mounts_of_a_filesystem_are_one_and_a_writable_one_is_preferred() {
        let lines = [
            "1 0 8:1 / /very/long rw - ext4 /dev/a rw",
            "2 0 8:1 / /ro ro - ext4 /dev/a rw",
            "3 0 8:1 /x /data rw - ext4 /dev/a rw",
            "4 0 0:9 / /proc rw - proc proc rw",
            "5 0 0:10 / /over rw - overlay overlay rw",
        ];
        let all: Vec<Mount> = lines.map(mount).into();
        let points: Vec<_> = by_default(&all).into_iter().map(|mount| mount.point).collect();
        assert_eq!(points, [Path::new("/data")]);
    }

    #[test]
    fn a_path_is_made_absolute_by_its_text() {
        assert_eq!(lexical(Path::new("/a/./b/../c")), Path::new("/a/c"));
        assert_eq!(lexical(Path::new("/../..")), Path::new("/"));
        assert_eq!(lexical(Path::new("x")), std::env::current_dir().unwrap().join("x"));
    }
}
