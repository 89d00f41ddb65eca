//! The commands that do one thing to a name: `ls`, `stat`, `rm`, `mv`, `ln`, `mkdir`, `sync`, `evict`.

use crate::command::Common;
use crate::command::exit::Outcome;
use crate::command::failures::Failures;
use crate::command::place;
use crate::command::show;
use crate::size::rough;
use leasehold_client::{convert, proto};
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
    /// Its new name on the same server, or a directory there; /PATH will do
    to: String,
}

/// Give a file one more name, or make a symbolic link
///
/// Both names of a file stand for the same bytes and the same leases; these end with the last name. A symbolic link is
/// kept for other tools: the store never follows one.
#[derive(Debug, clap::Args)]
pub(crate) struct Ln {
    /// The file: leasehold://HOST[:PORT]/PATH, or /PATH with --socket. With -s, what the link says
    target: String,
    /// The new name on the same server, or a directory there
    name: String,
    /// Make a symbolic link, which may say anything
    #[arg(short, long)]
    symbolic: bool,
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

/// Forget what the server holds of files in memory
///
/// What is committed is written back first. The next read comes from the disk.
#[derive(Debug, clap::Args)]
pub(crate) struct Evict {
    /// What: leasehold://HOST[:PORT]/PATH, or /PATH with --socket
    #[arg(required = true)]
    places: Vec<String>,
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
        proto::file::Kind::Link => "link",
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
        "target": Some(&file.target).filter(|_| file.kind() == proto::file::Kind::Link),
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
            let mut text = show::name(name(file)).into_owned();
            if file.kind() == proto::file::Kind::Directory {
                text.push('/');
            }
            if self.long {
                let modified = show::moment(convert::time_in(file.modified));
                if file.kind() == proto::file::Kind::Link {
                    text = format!("{text} -> {}", show::name(&file.target));
                }
                text = format!("{:>14} {modified} {text}", file.size);
            }
            show::line(text)?;
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
        show::line(format_args!("path      {}", show::name(&file.path)))?;
        show::line(format_args!("kind      {}", kind(&file)))?;
        show::line(format_args!("size      {} ({})", file.size, rough(file.size)))?;
        show::line(format_args!("links     {}", file.links))?;
        show::line(format_args!("modified  {}", show::moment(convert::time_in(file.modified))))?;
        if file.kind() == proto::file::Kind::Link {
            show::line(format_args!("says      {}", show::name(&file.target)))?;
        }
        Ok(())
    }
}

impl Rm {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let failures = Failures::default();
        for text in &self.places {
            let removed = async {
                let (client, path) = place::open(common, text).await?;
                Outcome::Ok(client.remove(&path).await?)
            };
            if let Err(error) = removed.await {
                eprintln!("{}", failures.add(text, &error));
            }
        }
        failures.outcome("removed")
    }
}

impl Mv {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, from) = place::open(common, &self.from).await?;
        let to = place::on_the_same(common, &client, &self.to)?;
        let to = place::into_directory(&client, &from, to).await?;
        Ok(client.rename(&from, &to).await?)
    }
}

impl Ln {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        if self.symbolic {
            let (client, name) = place::open(common, &self.name).await?;
            let name = place::into_directory(&client, &self.target, name).await?;
            return Ok(client.symlink(&self.target, &name).await?);
        }
        let (client, file) = place::open(common, &self.target).await?;
        let name = place::on_the_same(common, &client, &self.name)?;
        let name = place::into_directory(&client, &file, name).await?;
        Ok(client.link(&file, &name).await?)
    }
}

impl Evict {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (failures, mut bytes) = (Failures::default(), 0);
        for text in &self.places {
            let evicted = async {
                let (client, path) = place::open(common, text).await?;
                bytes += client.evict(&path).await?;
                Outcome::Ok(())
            };
            if let Err(error) = evicted.await {
                eprintln!("{}", failures.add(text, &error));
            }
        }
        if common.json {
            show::json_document(&json!({ "bytes": bytes }))?;
        } else {
            show::line(format_args!("{} of memory are free now", rough(bytes)))?;
        }
        failures.outcome("evicted")
    }
}

impl Mkdir {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path) = place::open(common, &self.place).await?;
        Ok(client.make_directory(&path, self.parents).await?)
    }
}

impl Sync {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let (client, path) = place::open(common, &self.place).await?;
        Ok(client.sync(&path).await?)
    }
}
