//! Mount options, by the words of mount(8) and fstab(5).

use rustix::mount::MountFlags;

/// What the kernel is told about a mount. No device and no setuid program on it counts, ever: the server is not asked
/// whether this machine trusts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options(MountFlags);

/// An option that means nothing here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no mount option of leasehold; it knows ro, noexec, nosymfollow, sync, dirsync, noatime, nodiratime, \
     relatime, strictatime, and their opposites (never suid or dev)"
)]
pub(crate) struct UnknownOption(String);

impl Options {
    /// From words between commas; a later one overrides those before. `sloppy`: unknown ones are none (`mount -s`).
    pub fn parse<'a>(
        words: impl IntoIterator<Item = &'a str>,
        sloppy: bool,
    ) -> Result<Options, UnknownOption> {
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        for word in words.into_iter().flat_map(|words| words.split(',')) {
            match flag(word) {
                Some((flag, is_set)) => flags.set(flag, is_set),
                None if is_for_others(word) || sloppy => {}
                None => return Err(UnknownOption(word.to_owned())),
            }
        }
        Ok(Options(flags))
    }

    pub(super) fn flags(self) -> MountFlags {
        self.0
    }
}

/// The flag that a word sets or unsets.
fn flag(word: &str) -> Option<(MountFlags, bool)> {
    Some(match word {
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
        "symfollow" => (MountFlags::NOSYMFOLLOW, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "nostrictatime" => (MountFlags::STRICTATIME, false),
        _ => return None,
    })
}

/// What is meant for mount(8), systemd or people, or says what is so anyway.
fn is_for_others(word: &str) -> bool {
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    let known = [
        "",
        "defaults",
        "auto",
        "noauto",
        "user",
        "users",
        "nouser",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "comment",
        "credentials",
        "nosuid",
        "nodev",
        "silent",
        "loud",
    ];
    known.contains(&name) || name.starts_with("x-") || name.starts_with("X-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fstab_gives_its_flags_and_what_is_unknown_is_named() {
        let always = MountFlags::NOSUID | MountFlags::NODEV;
        let parse = |text: &str| Options::parse([text], false);
        assert_eq!(parse("defaults,_netdev,x-systemd.automount,user=me,noauto"), Ok(Options(always)));
        assert_eq!(
            parse("ro,noatime,noexec,exec"),
            Ok(Options(always | MountFlags::RDONLY | MountFlags::NOATIME))
        );
        for unknown in ["suid", "dev", "uid=5", "or"] {
            assert_eq!(parse(&format!("ro,{unknown}")), Err(UnknownOption(unknown.to_owned())));
            assert!(Options::parse([unknown], true).is_ok());
        }
    }
}
