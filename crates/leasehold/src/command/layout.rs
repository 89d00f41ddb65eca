//! The commands that change which bytes a file has: `truncate`, `punch`, `zero`, `collapse`, and the copies that the server
//! makes by itself: `clone`, `cp`.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::place;
use crate::command::show;
use crate::size::{Size, rough};
use leasehold_client::{ByteRange, Client, Reason};
use serde_json::json;

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
    #[command(flatten)]
    part: Part,
}

/// Zero a range, which stays allocated; breaks the leases on it
///
/// The file does not get longer. To free the space of the range instead, punch it.
#[derive(Debug, clap::Args)]
pub(crate) struct Zero {
    #[command(flatten)]
    part: Part,
}

/// Take a range out; what is behind it moves to the front
///
/// The range begins and ends at multiples of 4096 bytes, and ends before the end of the file. All leases from its start on
/// are broken. Only some filesystems can do it (ext4, XFS).
#[derive(Debug, clap::Args)]
pub(crate) struct Collapse {
    #[command(flatten)]
    part: Part,
}

/// A range of a file.
#[derive(Debug, clap::Args)]
struct Part {
    /// What: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    place: String,
    /// Where the range begins
    #[arg(long, value_name = "SIZE")]
    offset: Size,
    /// How long it is
    #[arg(long, value_name = "SIZE")]
    length: Size,
}

/// Copy a file at one moment, sharing its blocks where the disk can
///
/// The copy is whole and durable when it appears. It takes no lease from the source, where writing may go on meanwhile:
/// all that is committed by then is in it. Without a filesystem that shares blocks (XFS, btrfs), they are copied.
#[derive(Debug, clap::Args)]
pub(crate) struct Clone {
    /// The file: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    from: String,
    /// The name of the copy on the same server, or a directory there
    to: String,
    /// Replace a file that has the name; breaks the leases on that one
    #[arg(short, long)]
    force: bool,
}

/// Copy bytes within the server; breaks the leases on what is written
///
/// Without a range, all of the file, and TO is made as long, and created if need be. With one, the rest of TO stays as it
/// is. Piece by piece, so writers can come in between: `clone` copies at one moment.
#[derive(Debug, clap::Args)]
pub(crate) struct Cp {
    /// The file: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    from: String,
    /// Where to, on the same server: a file or a directory; /PATH will do
    to: String,
    /// Where the range begins in FROM [default: 0]
    #[arg(long, value_name = "SIZE")]
    offset: Option<Size>,
    /// How long it is [default: to the end of FROM]
    #[arg(long, value_name = "SIZE")]
    length: Option<Size>,
    /// Where it goes in TO [default: 0]
    #[arg(long, value_name = "SIZE")]
    to_offset: Option<Size>,
}

impl Truncate {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path) = place::open(common, &self.place).await?;
        Ok(client.truncate(&path, self.size.0).await?)
    }
}

impl Punch {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path, range) = self.part.open(common).await?;
        Ok(client.punch(&path, range).await?)
    }
}

impl Zero {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path, range) = self.part.open(common).await?;
        Ok(client.zero(&path, range).await?)
    }
}

impl Collapse {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path, range) = self.part.open(common).await?;
        Ok(client.collapse(&path, range).await?)
    }
}

impl Part {
    async fn open(&self, common: &Common) -> anyhow::Result<(Client, String, ByteRange)> {
        let range = range(self.offset, self.length)?;
        let (client, path) = place::open(common, &self.place).await?;
        Ok((client, path, range))
    }
}

impl Clone {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, from) = place::open(common, &self.from).await?;
        let to = place::on_the_same(common, &client, &self.to)?;
        let to = place::into_directory(&client, &from, to).await?;
        match client.clone_file(&from, &to, self.force).await {
            Err(error) if error.reason == Reason::AlreadyExists => {
                let text = format!("{to} exists already; choose another name, or replace it with --force");
                Err(Failure::new(Exit::Failed, text).into())
            }
            Err(error) => Err(error.into()),
            Ok(shares) if common.json => {
                Ok(show::json_document(&json!({ "path": to, "shares_blocks": shares }))?)
            }
            Ok(true) => Ok(show::line("cloned; the blocks are shared")?),
            Ok(false) => Ok(show::line("cloned; the blocks were copied, since the disk cannot share them")?),
        }
    }
}

impl Cp {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, from) = place::open(common, &self.from).await?;
        let to = place::on_the_same(common, &client, &self.to)?;
        let to = place::into_directory(&client, &from, to).await?;
        let whole = self.offset.is_none() && self.length.is_none() && self.to_offset.is_none();
        let (offset, into) = (self.offset.unwrap_or(Size(0)), self.to_offset.unwrap_or(Size(0)));
        let range = match self.length {
            Some(length) => range(offset, length)?,
            None => ByteRange::from(offset.0),
        };
        client.stat(&from).await?; // before anything is created for nothing
        client.create(&to).await?;
        let copied = client.copy_range(&from, range, &to, into.0).await?;
        if whole {
            client.truncate(&to, copied).await?;
        }
        client.sync(&to).await?;
        if common.json {
            return Ok(show::json_document(&json!({ "path": to, "copied": copied }))?);
        }
        Ok(show::line(format_args!("{} copied, durable", rough(copied)))?)
    }
}

/// A range from two flags.
pub(crate) fn range(offset: Size, length: Size) -> anyhow::Result<ByteRange> {
    ByteRange::at(offset.0, length.0).ok_or_else(|| {
        let text = format!("--offset {offset} --length {length} is empty, or ends past 2^64");
        crate::command::exit::Failure::new(crate::command::exit::Exit::Usage, text).into()
    })
}
