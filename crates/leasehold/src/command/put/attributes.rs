//! Mode, time of modification and extended attributes, from a local file to the store.

use crate::command::line::Link;
use crate::command::put::target::{From, Target};
use anyhow::Context as _;
use leasehold_client::proto;
use rustix::fs::{getxattr, listxattr};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What extended attributes may hold on Linux.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Gives the file in the store what the source has.
pub(crate) async fn copy(link: &Link, target: &Target) -> anyhow::Result<()> {
    match &target.from {
        From::Stdin => Ok(()),
        From::File(path) => copy_from(link, path.clone(), &target.path).await,
    }
}

pub(crate) async fn copy_from(link: &Link, from: PathBuf, to: &str) -> anyhow::Result<()> {
    let looked = tokio::task::spawn_blocking(move || {
        look(&from).with_context(|| format!("cannot read the attributes of {}", from.display()))
    });
    let attributes = looked.await.expect("looking does not panic")?;
    Ok(link.client().set_attributes(to, attributes).await?)
}

fn look(path: &Path) -> std::io::Result<proto::Attributes> {
    let found = std::fs::metadata(path)?;
    Ok(proto::Attributes {
        mode: Some(found.mode() & 0o7777),
        modified: Some(found.modified()?.into()),
        xattrs: Some(proto::Xattrs { values: xattrs(path)? }),
    })
}

fn xattrs(path: &Path) -> std::io::Result<HashMap<String, bytes::Bytes>> {
    let mut names = vec![0; XATTR_BYTES_MAX];
    let length = match listxattr(path, &mut names) {
        Err(Errno::NOTSUP) => 0,
        listed => listed?,
    };
    let mut values = HashMap::new();
    for name in names[..length].split(|byte| *byte == 0) {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| name.starts_with("user.")) else {
            continue;
        };
        let mut value = vec![0; XATTR_BYTES_MAX];
        let length = getxattr(path, name, &mut value)?;
        value.truncate(length);
        values.insert(name.to_owned(), value.into());
    }
    Ok(values)
}
