//! The commands that do one thing to a name: `ls`, `stat`, `rm`, `mv`, `mkdir`, `truncate`, `punch`, `sync`.

use crate::command::Common;
use crate::command::exit::Outcome;
use crate::command::place;
use crate::command::show;
use crate::size::{Size, rough};
use leasehold_client::{ByteRange, convert, proto};
use serde_json::{Value, json};

/// List a directory
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// Where: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    place: String,
    /// Show sizes and times
    #[arg(short, long)]
    long: bool,
}

/// Show what is known about a file
#[derive(Debug, clap::Args)]
pub(crate) struct Stat {
    /// What: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    place: String,
}

/// Remove files or empty directories; breaks the leases on them
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// What: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    #[arg(required = true)]
    places: Vec<String>,
}

/// Rename; breaks the leases on a file that is replaced
#[derive(Debug, clap::Args)]
pub(crate) struct Mv {
    /// What: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    from: String,
    /// Its new name on the same server; /PATH will do
    to: String,
}

/// Make a directory
#[derive(Debug, clap::Args)]
pub(crate) struct Mkdir {
    /// Where: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    place: String,
    /// Make missing parents too; it is no error if it exists
    #[arg(short, long)]
    parents: bool,
}

/// Set a file's size; shrinking breaks the leases beyond it
///
/// Returns once the leases beyond the new size are over and no late byte can land: after the grace period and the fence
/// at the latest.
#[derive(Debug, clap::Args)]
pub(crate) struct Truncate {
    /// What: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    place: String,
    /// The new size
    #[arg(short, long, value_name = "SIZE")]
    size: Size,
}

/// Free a range, which then reads as zeros; breaks the leases on it
#[derive(Debug, clap::Args)]
pub(crate) struct Punch {
    /// What: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    place: String,
    /// Where the range begins
    #[arg(long, value_name = "SIZE")]
    offset: Size,
    /// How long it is
    #[arg(long, value_name = "SIZE")]
    length: Size,
}

/// Wait until everything committed to a file is durable
#[derive(Debug, clap::Args)]
pub(crate) struct Sync {
    /// What: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    place: String,
}

fn kind(file: &proto::File) -> &'static str {
    match file.kind() {
        proto::file::Kind::Directory => "directory",
        proto::file::Kind::File => "file",
        proto::file::Kind::Other | proto::file::Kind::Unspecified => "other",
    }
}

fn name(file: &proto::File) -> &str {
    file.path.rsplit('/').next().unwrap_or_default()
}

fn as_json(file: &proto::File) -> Value {
    json!({
        "path": file.path,
        "kind": kind(file),
        "size": file.size,
        "links": file.links,
        "modified": show::json_some_moment(file.modified),
    })
}

impl Ls {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path) = place::open(common, &self.place).await?;
        let files = client.list(&path).await?;
        if common.json {
            return Ok(show::json_document(&files.iter().map(as_json).collect())?);
        }
        for file in &files {
            let slash = if file.kind() == proto::file::Kind::Directory { "/" } else { "" };
            let name = name(file);
            if self.long {
                let modified = show::moment(convert::time_in(file.modified));
                show::line(format_args!("{:>14} {modified} {name}{slash}", file.size))?;
            } else {
                show::line(format_args!("{name}{slash}"))?;
            }
        }
        Ok(())
    }
}

impl Stat {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path) = place::open(common, &self.place).await?;
        let file = client.stat(&path).await?;
        if common.json {
            return Ok(show::json_document(&as_json(&file))?);
        }
        show::line(format_args!("path      {}", file.path))?;
        show::line(format_args!("kind      {}", kind(&file)))?;
        show::line(format_args!("size      {} ({})", file.size, rough(file.size)))?;
        show::line(format_args!("links     {}", file.links))?;
        show::line(format_args!("modified  {}", show::moment(convert::time_in(file.modified))))?;
        Ok(())
    }
}

impl Rm {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        for text in &self.places {
            let (client, path) = place::open(common, text).await?;
            client.remove(&path).await?;
        }
        Ok(())
    }
}

impl Mv {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, from) = place::open(common, &self.from).await?;
        let to = place::on_the_same(common, &client, &self.to)?;
        Ok(client.rename(&from, &to).await?)
    }
}

impl Mkdir {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path) = place::open(common, &self.place).await?;
        Ok(client.make_directory(&path, self.parents).await?)
    }
}

impl Truncate {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path) = place::open(common, &self.place).await?;
        Ok(client.truncate(&path, self.size.0).await?)
    }
}

impl Punch {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let range = range(self.offset, self.length)?;
        let (client, path) = place::open(common, &self.place).await?;
        Ok(client.punch(&path, range).await?)
    }
}

impl Sync {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path) = place::open(common, &self.place).await?;
        Ok(client.sync(&path).await?)
    }
}

/// A range from two flags.
pub(crate) fn range(offset: Size, length: Size) -> anyhow::Result<ByteRange> {
    ByteRange::at(offset.0, length.0).ok_or_else(|| {
        let text = format!("--offset {offset} --length {length} is empty, or ends past 2^64");
        crate::command::exit::Failure::new(crate::command::exit::Exit::Usage, text).into()
    })
}
