//! Whom a server knows beside its operator, and what each may do: a file that `leasehold tenant` writes.
//!
//! ```toml
//! [train]
//! path = "/train"                # all that it can see, and below
//! access = "write"               # or "read", or "admin": everything, everywhere
//! sessions_max = 16              # what it may have at once; left out, a quarter of what the server can have,
//! leases_max = 10000
//! arena_max = "128MiB"           # and half of the arena
//! tokens = ["<SHA-256, in hex>"] # of the tokens by which it can come in; a certificate with its name does, too
//! ```
//! A tenant that is not in the file may do nothing: there is no default to forget about.
//!
//! The file is looked at again once a second, so whoever is taken out of it is out within that, and its sessions end when nobody
//! keeps them alive any more. What cannot be parsed changes nothing, and is logged.

use crate::server::asks::Ask;
use crate::server::refusal::{refuse, status};
use crate::size::Size;
use leasehold_client::Reason;
use leasehold_core::ids::TenantId;
use leasehold_core::input::Share;
use leasehold_core::range::BLOCK_BYTES;
use leasehold_engine::engine;
use leasehold_engine::path::StorePath;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::Status;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
const TOKEN_BYTES: usize = 32;

/// The file, tenant by tenant.
pub(crate) type Entries = BTreeMap<String, Entry>;

/// One tenant in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// All that it can see.
    #[serde(default = "root")]
    pub(crate) path: String,
    /// What it may do there.
    pub(crate) access: Access,
    /// How many sessions it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sessions_max: Option<usize>,
    /// How many leases these may have, granted or wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) leases_max: Option<usize>,
    /// How much of the arena under these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) arena_max: Option<Size>,
    /// The hashes of its tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) tokens: Vec<String>,
}

fn root() -> String {
    "/".to_owned()
}

/// What a tenant may do; each includes those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Access {
    /// Read below its path.
    Read,
    /// Change what is there.
    Write,
    /// Everything, everywhere: see all that happens, and act on every path.
    Admin,
}

/// A tenant, as calls are judged by it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) path: StorePath,
    pub(crate) access: Access,
    /// What it may have at once.
    pub(crate) shares: engine::Tenant,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TenantsError {
    /// It cannot be read.
    #[error("cannot read the tenants in {path:?}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It can be read, and makes no sense.
    #[error("{path:?} is not what `leasehold tenant` writes: {why}")]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Where the tenants of the store in `directory` are written down.
pub(crate) fn file(directory: &Path) -> PathBuf {
    directory.join(".leasehold/tenants.toml")
}

/// What the file says; nothing, if there is none.
pub(crate) fn entries(path: &Path) -> Result<Entries, TenantsError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Entries::new()),
        Err(source) => return Err(TenantsError::Read { path: path.to_owned(), source }),
    };
    toml::from_str(&text)
        .map_err(|error| TenantsError::Malformed { path: path.to_owned(), why: error.message().to_owned() })
}

/// A token, and what is kept of it.
pub(crate) fn new_token() -> Result<(String, String), getrandom::Error> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes)?;
    let token = format!("leasehold-{}", hex(&bytes));
    let hash = hash(&token);
    Ok((token, hash))
}

fn hash(token: &str) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// All tenants, as the file has them now.
pub(crate) struct Tenants {
    path: PathBuf,
    /// What each may have, unless the file says otherwise.
    defaults: Defaults,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
struct Defaults {
    sessions_max: usize,
    leases_max: usize,
    arena_bytes: u64,
}

struct State {
    /// Each name has one number, whoever else comes and goes: leases may outlive their tenant's place in the file.
    numbers: HashMap<String, TenantId>,
    known: Arc<Known>,
    /// Of which file that is what.
    stamp: Option<Stamp>,
    looked: Instant,
}

/// Differs when the file does.
type Stamp = (u64, i64, i64, u64);

#[derive(Default)]
struct Known {
    by_name: HashMap<String, Arc<Tenant>>,
    by_token: HashMap<String, Arc<Tenant>>,
}

impl Tenants {
    /// Those of the store in `directory`.
    pub(crate) fn load(directory: &Path, config: &engine::Config) -> Result<Tenants, TenantsError> {
        let defaults = Defaults {
            sessions_max: config.limits.sessions_max.div_ceil(4),
            leases_max: config.limits.leases_max.div_ceil(4),
            arena_bytes: config.arena_bytes / 2,
        };
        let (path, mut numbers) = (file(directory), HashMap::new());
        let stamp = stamp(&path);
        let known = Arc::new(known(&path, defaults, &mut numbers)?);
        let state = State { numbers, known, stamp, looked: Instant::now() };
        Ok(Tenants { path, defaults, state: Mutex::new(state) })
    }

    /// The tenant of that name.
    pub(crate) fn named(&self, name: &str) -> Option<Arc<Tenant>> {
        self.find(|known| known.by_name.get(name).cloned())
    }

    /// The tenant that has this token.
    pub(crate) fn with_token(&self, token: &str) -> Option<Arc<Tenant>> {
        // Of the hash of what nobody can guess, nobody learns anything by how long this takes.
        let hash = hash(token);
        self.find(|known| known.by_token.get(&hash).cloned())
    }

    fn find(&self, pick: impl Fn(&Known) -> Option<Arc<Tenant>>) -> Option<Arc<Tenant>> {
        // Who is not known may have been added a moment ago.
        pick(&self.known(LOOK)).or_else(|| pick(&self.known(Duration::ZERO)))
    }

    /// By what the file said so long ago at most.
    fn known(&self, age: Duration) -> Arc<Known> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= age {
            state.looked = Instant::now();
            let stamp = stamp(&self.path);
            if stamp != state.stamp {
                state.stamp = stamp;
                match known(&self.path, self.defaults, &mut state.numbers) {
                    Ok(known) => state.known = Arc::new(known),
                    Err(error) => tracing::error!("{error}; the tenants are those from before"),
                }
            }
        }
        state.known.clone()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
}

fn known(
    path: &Path,
    defaults: Defaults,
    numbers: &mut HashMap<String, TenantId>,
) -> Result<Known, TenantsError> {
    let mut known = Known::default();
    for (name, entry) in entries(path)? {
        let Entry { path: place, access, sessions_max, leases_max, arena_max, tokens } = entry;
        let next = u32::try_from(numbers.len()).expect("no file has so many tenants");
        let arena = arena_max.map_or(defaults.arena_bytes, |size| size.0);
        let shares = engine::Tenant {
            id: *numbers.entry(name.clone()).or_insert(TenantId(next)),
            sessions_max: sessions_max.unwrap_or(defaults.sessions_max),
            share: Share {
                leases_max: leases_max.unwrap_or(defaults.leases_max),
                frames_max: u32::try_from(arena / BLOCK_BYTES).unwrap_or(u32::MAX),
            },
        };
        let place = StorePath::parse(&place).map_err(|error| TenantsError::Malformed {
            path: path.to_owned(),
            why: format!("of {name}: {error}"),
        })?;
        let tenant = Arc::new(Tenant { name: name.clone(), path: place, access, shares });
        known.by_token.extend(tokens.into_iter().map(|hash| (hash, tenant.clone())));
        known.by_name.insert(name, tenant);
    }
    Ok(known)
}

impl Tenant {
    /// Whether what is at this path is the tenant's to see.
    pub(crate) fn sees(&self, path: &StorePath) -> bool {
        self.access == Access::Admin || path.is_in(&self.path)
    }

    /// Whether the tenant may, of files.
    pub(crate) fn may(&self, ask: Ask<'_>) -> Result<(), Status> {
        let (path, needs, verb) = match ask {
            Ask::Session(_) => return Ok(()),
            Ask::Read(path) => (path, Access::Read, "read"),
            Ask::Write(path) => (path, Access::Write, "change"),
        };
        let path = StorePath::parse(path).map_err(|error| refuse(&error))?;
        if self.sees(&path) && self.access >= needs {
            return Ok(());
        }
        let Tenant { name, path: place, access, .. } = self;
        let may = if *access == Access::Read { "read" } else { "read and change" };
        Err(status(
            Reason::Denied,
            format!(
                "the tenant {name} may not {verb} {path}: it may {may} what is in {place}; ask who runs the server"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(path: &str, access: Access) -> Tenant {
        let share = Share { leases_max: 1, frames_max: 1 };
        let shares = engine::Tenant { id: TenantId(0), sessions_max: 1, share };
        Tenant { name: "train".to_owned(), path: StorePath::parse(path).unwrap(), access, shares }
    }

    #[test]
    fn a_tenant_may_do_what_its_access_says_in_its_path_and_nothing_elsewhere() {
        use Access::{Admin, Read, Write};
        for (path, access, read, write) in [
            ("/train", Read, true, false),
            ("/train", Write, true, true),
            ("/train/a", Write, false, false),
            ("/trai", Write, false, false),
            ("/other", Write, false, false),
            ("/other", Admin, true, true),
            ("/", Read, true, false),
            ("/", Write, true, true),
        ] {
            for asked in ["/train/", "/train"].map(|path| path.trim_end_matches('/')) {
                let tenant = tenant(path, access);
                assert_eq!(tenant.may(Ask::Read(asked)).is_ok(), read, "{tenant:?} {asked}");
                assert_eq!(tenant.may(Ask::Write(asked)).is_ok(), write, "{tenant:?} {asked}");
            }
        }
        let train = tenant("/train", Write);
        for outside in
            ["/", "/training", "/train-2/x", "/x/train", "/train/../x", "train/../../x", "/train//x", ""]
        {
            let refused = train.may(Ask::Read(outside)).unwrap_err();
            assert!(refused.message().contains(outside), "{refused}");
        }
        for inside in ["/train", "train", "/train/a/b", "/train/.hidden"] {
            train.may(Ask::Write(inside)).unwrap();
        }
    }

    #[test]
    fn a_token_is_kept_as_a_hash_and_found_by_itself_only() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(".leasehold")).unwrap();
        let (token, hash) = new_token().unwrap();
        assert_ne!(new_token().unwrap().0, token);
        let text = format!("[train]\npath = '/train'\naccess = 'write'\ntokens = ['{hash}']\n");
        std::fs::write(file(directory.path()), text).unwrap();
        let tenants = Tenants::load(directory.path(), &engine::Config::new("")).unwrap();
        assert_eq!(tenants.with_token(&token).unwrap().name, "train");
        assert_eq!(tenants.with_token(&hash), None, "who reads the file has no token");
        assert_eq!(tenants.named("train").unwrap().path.to_string(), "/train");
        assert_eq!(tenants.named("other"), None);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused_at_the_start_and_changes_nothing_later() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(".leasehold")).unwrap();
        let path = file(directory.path());
        std::fs::write(&path, "[train]\naccess = 'read'\n").unwrap();
        let tenants = Tenants::load(directory.path(), &engine::Config::new("")).unwrap();
        let look_now = || tenants.state.lock().unwrap().looked -= LOOK;
        for wrong in ["[train]\naccess = 'all'\n", "[train]\n", "[train]\naccess = 'read'\npath = '/../x'\n"]
        {
            std::fs::write(&path, wrong).unwrap();
            assert!(
                matches!(
                    Tenants::load(directory.path(), &engine::Config::new("")),
                    Err(TenantsError::Malformed { .. })
                ),
                "{wrong}"
            );
            look_now();
            assert!(tenants.named("train").is_some(), "{wrong}");
        }
        std::fs::remove_file(&path).unwrap();
        look_now();
        assert_eq!(tenants.named("train"), None, "without a file there are no tenants");
    }
}
