//! `leasehold tenant`: whom a server knows beside its operator. It edits the file that the server reads.

use crate::command::Common;
use crate::command::cert::{name_in_a_certificate, public, secret};
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::show;
use crate::server::tenants::{self, Access, Entries, Entry};
use crate::size::Size;
use anyhow::Context as _;
use clap::ValueEnum as _;
use leasehold_engine::path::StorePath;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Say who may do what in a store
///
/// A tenant comes in by TLS, with a certificate of its name or with a token. It sees what is in its path, and nothing else. A
/// server that runs takes notice within a second. Whoever can write to the store's directory can do this.
#[derive(Debug, clap::Args)]
pub(crate) struct Tenant {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Add a tenant, or change what it may do (what is not given has its default again; its tokens stay)
    Add {
        #[command(flatten)]
        store: Store,
        /// Its name, as in its certificate
        #[arg(value_parser = name_in_a_certificate)]
        name: String,
        /// All that it can see: a directory, or a file
        #[arg(long, value_name = "PATH", default_value = "/", value_parser = place)]
        path: String,
        /// What it may do there
        #[arg(long, value_name = "WHAT", default_value = "write")]
        access: Access,
        /// How many sessions it may have [default: a quarter of the server's]
        #[arg(long, value_name = "N")]
        sessions_max: Option<usize>,
        /// How many leases these may have at once [default: a quarter of the server's]
        #[arg(long, value_name = "N")]
        leases_max: Option<usize>,
        /// How much of the arena under these [default: half of it]
        #[arg(long, value_name = "SIZE")]
        arena_max: Option<Size>,
    },
    /// Make a token for it: one more, or the only one
    Token {
        #[command(flatten)]
        store: Store,
        /// Whose
        name: String,
        /// The authority of the server's certificate (ca.pem), by which the client will know the server
        #[arg(long, value_name = "FILE")]
        ca: PathBuf,
        /// The credentials to write, for the client
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Its other tokens end
        #[arg(long)]
        replace: bool,
    },
    /// Show all of them
    List {
        #[command(flatten)]
        store: Store,
    },
    /// Take one out, whatever it shows
    Rm {
        #[command(flatten)]
        store: Store,
        /// Which
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct Store {
    /// The store's directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

fn place(text: &str) -> Result<String, String> {
    StorePath::parse(text).map(|path| path.to_string()).map_err(|error| error.to_string())
}

fn named(access: Access) -> String {
    access.to_possible_value().expect("none is hidden").get_name().to_owned()
}

impl Store {
    fn file(&self) -> anyhow::Result<PathBuf> {
        let file = tenants::file(&self.directory);
        if !file.parent().is_some_and(Path::is_dir) {
            let text = format!("{} is no store; `leasehold serve` makes one", self.directory.display());
            return Err(Failure::new(Exit::Usage, text).into());
        }
        Ok(file)
    }

    fn change(&self, change: impl FnOnce(&mut Entries) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let file = self.file()?;
        let mut entries = tenants::entries(&file)?;
        change(&mut entries)?;
        // The server may be another user; there is nothing secret in it.
        public(&file, &toml::to_string(&entries).context("tenants are plain values")?)
    }
}

fn unknown(name: &str) -> Failure {
    Failure::new(
        Exit::NotFound,
        format!("there is no tenant {name}; `leasehold tenant list` has those that are"),
    )
}

impl Tenant {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        match self.what {
            What::Add { store, name, path, access, sessions_max, leases_max, arena_max } => {
                store.change(|entries| {
                    let new = Entry { path, access, sessions_max, leases_max, arena_max, tokens: Vec::new() };
                    let tokens = entries.remove(&name).map(|old| old.tokens).unwrap_or_default();
                    entries.insert(name, Entry { tokens, ..new });
                    Ok(())
                })
            }
            What::Token { store, name, ca, output, replace } => {
                let ca =
                    std::fs::read_to_string(&ca).with_context(|| format!("cannot read {}", ca.display()))?;
                let (token, hash) = tenants::new_token().context("the system has no random bytes")?;
                store.change(|entries| {
                    let entry = entries.get_mut(&name).ok_or_else(|| unknown(&name))?;
                    if replace {
                        entry.tokens.clear();
                    }
                    entry.tokens.push(hash);
                    Ok(())
                })?;
                let head = format!("# Credentials for Leasehold: whoever has this file is {name:?}.");
                secret(&output, &format!("{head}\nca = '''\n{ca}'''\ntoken = '{token}'\n"))
            }
            What::List { store } => list(common, &tenants::entries(&store.file()?)?),
            What::Rm { store, name } => {
                store.change(|entries| entries.remove(&name).map(drop).ok_or_else(|| unknown(&name).into()))
            }
        }
    }
}

fn list(common: &Common, entries: &Entries) -> Outcome {
    if common.json {
        let row = |(name, entry): (&String, &Entry)| {
            let (path, access, tokens) = (&entry.path, named(entry.access), entry.tokens.len());
            json!({ "tenant": name, "path": path, "access": access, "tokens": tokens })
        };
        return Ok(show::json_document(&entries.iter().map(row).collect())?);
    }
    if entries.is_empty() {
        return Ok(show::line("no tenants")?);
    }
    let mut table = show::table(&["TENANT", "ACCESS", "TOKENS", "PATH"]);
    for (name, entry) in entries {
        let tokens = entry.tokens.len().to_string();
        table.add_row([name.clone(), named(entry.access), tokens, show::name(&entry.path).into_owned()]);
    }
    Ok(show::line(show::text(&table))?)
}
