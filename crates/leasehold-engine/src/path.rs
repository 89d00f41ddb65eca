//! Names of files in a store.

use std::fmt;

/// The path of a file or directory in a store: relative to its root, UTF-8, without `.`, `..` or empty parts.
///
/// The root itself is the empty path, written `/`.
///
/// ```
/// use leasehold_engine::path::StorePath;
/// assert_eq!(StorePath::parse("/models/weights.bin").unwrap().as_str(), "models/weights.bin");
/// assert!(StorePath::parse("../etc/passwd").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(String);

/// Why a text is not a path in a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages name every field")]
pub enum PathError {
    /// Two slashes in a row, or one at the end.
    #[error("the path {path:?} has an empty part; write it with single slashes and none at the end")]
    EmptyPart { path: String },
    /// `.` or `..`.
    #[error("the path {path:?} has the part {part:?}; write the path from the store's root without it")]
    Dots { path: String, part: String },
    /// A NUL byte.
    #[error("the path {path:?} has a NUL byte; leave it out")]
    Nul { path: String },
    /// Longer than the kernel takes, or than a filesystem takes a name.
    #[error(
        "the path {path:?} has a part or a whole that is too long; names end at 255 bytes, paths at 4095"
    )]
    TooLong { path: String },
    /// The store keeps its own records there.
    #[error("the path {path:?} is in .leasehold, where the store keeps its own records; choose another name")]
    Reserved { path: String },
}

impl StorePath {
    /// The root of the store.
    pub const ROOT: StorePath = StorePath(String::new());

    /// Takes a path as people write it; a leading slash makes no difference.
    ///
    /// # Errors
    ///
    /// [`PathError`] says what is wrong with it and what to write instead.
    pub fn parse(text: &str) -> Result<StorePath, PathError> {
        let path = || text.to_owned();
        let relative = text.strip_prefix('/').unwrap_or(text);
        if text.contains('\0') {
            return Err(PathError::Nul { path: path() });
        }
        if relative.is_empty() {
            return if text == "/" {
                Ok(StorePath::ROOT)
            } else {
                Err(PathError::EmptyPart { path: path() })
            };
        }
        for (depth, part) in relative.split('/').enumerate() {
            match part {
                "" => return Err(PathError::EmptyPart { path: path() }),
                "." | ".." => return Err(PathError::Dots { path: path(), part: part.to_owned() }),
                ".leasehold" if depth == 0 => return Err(PathError::Reserved { path: path() }),
                _ if part.len() > 255 => return Err(PathError::TooLong { path: path() }),
                _ => {}
            }
        }
        // PATH_MAX counts the zero byte at the end.
        if relative.len() > 4095 {
            return Err(PathError::TooLong { path: path() });
        }
        Ok(StorePath(relative.to_owned()))
    }

    /// The path without a leading slash; empty for the root.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the root of the store.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds it, and its name in there; `None` for the root.
    #[must_use]
    pub fn split(&self) -> Option<(StorePath, &str)> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.rsplit_once('/') {
            Some((parent, name)) => (StorePath(parent.to_owned()), name),
            None => (StorePath::ROOT, &self.0),
        })
    }

    /// What this path becomes when what is called `from` is called `to`: `None` if it is neither that nor below it, or if it
    /// becomes too long.
    #[must_use]
    pub fn renamed(&self, from: &StorePath, to: &StorePath) -> Option<StorePath> {
        let rest = self.0.strip_prefix(&from.0)?;
        let concerned = rest.is_empty() || rest.starts_with('/');
        concerned.then(|| StorePath::parse(&format!("{}{rest}", to.0)).ok()).flatten()
    }

    /// Whether this is what `directory` is, or below it.
    #[must_use]
    pub fn is_in(&self, directory: &StorePath) -> bool {
        let rest = self.0.strip_prefix(&directory.0);
        directory.is_root() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The entry `name` of this directory.
    ///
    /// # Errors
    ///
    /// As for [`StorePath::parse`].
    pub fn join(&self, name: &str) -> Result<StorePath, PathError> {
        if self.is_root() { StorePath::parse(name) } else { StorePath::parse(&format!("{}/{name}", self.0)) }
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

impl std::borrow::Borrow<str> for StorePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for StorePath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<StorePath, PathError> {
        StorePath::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_concerns_what_is_renamed_and_what_is_below_it() {
        let path = |text| StorePath::parse(text).unwrap();
        let renamed = |text| path(text).renamed(&path("a/b"), &path("c"));
        assert_eq!((renamed("a/b"), renamed("a/b/d")), (Some(path("c")), Some(path("c/d"))));
        assert_eq!((renamed("a"), renamed("a/bc"), renamed("c")), (None, None, None));
    }

    #[test]
    fn a_leading_slash_makes_no_difference() {
        assert_eq!(StorePath::parse("/a/b"), StorePath::parse("a/b"));
        assert_eq!(StorePath::parse("a/b").unwrap().to_string(), "/a/b");
    }

    #[test]
    fn what_could_leave_the_store_or_confuse_is_refused_with_a_remedy() {
        for (text, remedy) in [
            ("", "single slashes"),
            ("a//b", "single slashes"),
            ("a/", "single slashes"),
            ("..", "without it"),
            ("a/../b", "without it"),
            ("./a", "without it"),
            ("a\0b", "leave it out"),
            (".leasehold/log", "choose another name"),
            ("/.leasehold", "choose another name"),
        ] {
            let error = StorePath::parse(text).expect_err(text).to_string();
            assert!(error.contains(remedy), "{text:?}: {error}");
        }
        assert!(StorePath::parse(&"x".repeat(256)).is_err());
        assert!(StorePath::parse(&"x/".repeat(2500)).is_err());
    }

    #[test]
    fn only_the_root_of_the_store_reserves_a_name() {
        assert!(StorePath::parse("a/.leasehold").is_ok());
    }

    #[test]
    fn a_path_splits_into_directory_and_name() {
        let path = StorePath::parse("a/b/c").unwrap();
        assert_eq!(path.split(), Some((StorePath::parse("a/b").unwrap(), "c")));
        assert_eq!(StorePath::parse("c").unwrap().split(), Some((StorePath::ROOT, "c")));
        assert_eq!(StorePath::ROOT.split(), None);
        assert_eq!(StorePath::parse("a/b").unwrap().join("c").unwrap(), path);
        assert_eq!(StorePath::ROOT.join("c").unwrap(), StorePath::parse("c").unwrap());
    }
}
