//! What the operator decides: a TOML file, the environment, flags; each overrides the ones before.

use crate::server::door;
use crate::size::Size;
use config::{Config, ConfigError, Environment, File, FileFormat, Map, Value};
use leasehold_core::{Limits, OnExpiry};
use leasehold_engine::arena::Pages;
use leasehold_engine::engine;
use leasehold_fabric::Kind;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Every environment variable of ours begins with this.
pub const ENVIRONMENT_PREFIX: &str = "LEASEHOLD_";

/// For clients: no setting of a server.
const CREDENTIALS: &str = "LEASEHOLD_CREDENTIALS";

/// What `leasehold serve` can be told. The names are the keys of the file; `LEASEHOLD_` and the name in capitals is
/// the variable; `--name` with dashes is the flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the control plane (gRPC) listens.
    pub listen: SocketAddr,
    /// Where data connections (iWARP) are accepted.
    pub data: SocketAddr,
    /// Where Prometheus finds `/metrics`.
    pub metrics: SocketAddr,
    /// The control plane's unix socket; `DIR/.leasehold/control.sock` if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The directory with `ca.pem`, `server.pem` and `server.key`: the control plane is TLS then, for clients with a certificate
    /// of that authority. Without it, there is no control plane on TCP, unless `insecure` says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<PathBuf>,
    /// Whether everybody may come in by TCP.
    pub insecure: Insecure,
    /// What to log: a level, or as in `RUST_LOG`.
    pub log: String,
    /// The memory that clients write into.
    pub arena: Size,
    /// Of which pages it is made.
    pub pages: PageKind,
    /// How long the holder of a lease has to answer a break.
    pub grace_ms: u64,
    /// What happens to a holder that does not.
    pub on_expiry: Expiry,
    /// How long a fence may take before its frames go into quarantine.
    pub fence_ms: u64,
    /// How long a session lives without a sign of life.
    pub session_ttl_ms: u64,
    /// How long the token for a data connection is good.
    pub token_ttl_ms: u64,
    /// How long after a failed writeback it is tried again.
    pub retry_ms: u64,
    /// How long a stop waits for writeback.
    pub drain_ms: u64,
    /// How many files are kept open.
    pub open_files_max: usize,
    /// Check each frame of the wire before its bytes are placed, at the price of a copy.
    pub strict_placement: bool,
    /// By which kind of fabric data come.
    pub fabric: FabricChoice,
    /// How much of everything there may be.
    pub limits: LimitSettings,
}

/// By which kind of fabric data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FabricChoice {
    /// By RDMA devices where both ends have them, else over TCP.
    Auto,
    /// RDMA over TCP, in user space.
    Iwarp,
    /// The same over TLS: for clients of ours only.
    IwarpTls,
    /// RDMA devices, or fail.
    Verbs,
}

impl FabricChoice {
    /// The kind, unless that is found out.
    #[must_use]
    pub fn kind(self) -> Option<Kind> {
        match self {
            FabricChoice::Auto => None,
            FabricChoice::Iwarp => Some(Kind::Iwarp),
            FabricChoice::IwarpTls => Some(Kind::IwarpTls),
            FabricChoice::Verbs => Some(Kind::Verbs),
        }
    }
}

/// Of which pages the arena is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PageKind {
    /// Huge ones where the host has them, else normal ones.
    Auto,
    /// 4 KiB.
    Normal,
    /// 2 MiB, or fail.
    Huge,
}

/// Whether the control plane listens on TCP without asking who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Insecure {
    /// It does not.
    No,
    /// On an address of this machine's own: every user of it may do everything.
    Loopback,
    /// On any address: whoever reaches it may do everything.
    Anywhere,
}

/// What happens to a holder that does not answer a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Expiry {
    /// It loses the one lease.
    FenceLease,
    /// It loses its session.
    EndSession,
}

/// The table `limits`; the names are those that errors show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the others are documented at leasehold_core::Limits")]
pub struct LimitSettings {
    pub sessions_max: usize,
    pub files_max: usize,
    pub leases_max: usize,
    pub leases_per_session_max: usize,
    pub requests_max: usize,
    pub acquire_ranges_max: usize,
    pub lease_bytes_max: Size,
    pub breaks_per_lease_max: usize,
    pub captures_per_lease_max: usize,
    pub remembered_per_session_max: usize,
    /// Control connections over TCP.
    pub connections_max: usize,
    /// The same, from one address.
    pub connections_per_address_max: usize,
    /// How many of them may come in a second, from one address, for longer than a few.
    pub connections_per_second_max: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        let engine = engine::Config::new("");
        let Limits {
            sessions_max,
            files_max,
            leases_max,
            leases_per_session_max,
            requests_max,
            acquire_ranges_max,
            lease_bytes_max,
            breaks_per_lease_max,
            captures_per_lease_max,
            remembered_per_session_max,
        } = engine.limits;
        Settings {
            listen: SocketAddr::from(([127, 0, 0, 1], 7117)),
            data: engine.data_address,
            metrics: SocketAddr::from(([127, 0, 0, 1], 7119)),
            socket: None,
            tls: None,
            insecure: Insecure::No,
            log: "info".to_owned(),
            arena: Size(engine.arena_bytes),
            pages: PageKind::Auto,
            grace_ms: engine.grace_ms,
            on_expiry: Expiry::FenceLease,
            fence_ms: engine.fence_ms,
            session_ttl_ms: engine.session_ttl_ms,
            token_ttl_ms: engine.token_ttl_ms,
            retry_ms: engine.retry_ms,
            drain_ms: engine.drain_ms,
            open_files_max: engine.open_files_max,
            strict_placement: engine.strict_placement,
            fabric: FabricChoice::Auto,
            limits: LimitSettings {
                sessions_max,
                files_max,
                leases_max,
                leases_per_session_max,
                requests_max,
                acquire_ranges_max,
                lease_bytes_max: Size(lease_bytes_max),
                breaks_per_lease_max,
                captures_per_lease_max,
                remembered_per_session_max,
                connections_max: 4096,
                connections_per_address_max: 1024,
                connections_per_second_max: 256,
            },
        }
    }
}

/// Why the settings make no sense.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file, a variable or a flag is wrong.
    #[error("{0}; see `leasehold serve --print-config` for every setting and its default")]
    Wrong(#[from] ConfigError),
    /// Credentials are asked for, and are not.
    #[error(
        "both `tls` and `insecure` are set: with `tls`, every caller must show a certificate; leave one of them out"
    )]
    SecureAndInsecure,
    /// Without credentials, and not on this machine alone.
    #[error(
        "listen is {0}, where others than this machine's users may come in, and nobody would be asked who they are; set \
         `tls` (see `leasehold cert`), listen on 127.0.0.1, or write --insecure=anywhere if you mean it"
    )]
    InsecureAnywhere(SocketAddr),
    /// A value with which nothing could be served.
    #[error("{setting} is {value}, with which nothing could be served; give at least {least}")]
    TooSmall {
        /// Which.
        setting: &'static str,
        /// Its value.
        value: u64,
        /// The smallest that makes sense.
        least: u64,
    },
}

impl Settings {
    /// From `file`, then `environment`, then `flags` (by the names of the fields).
    ///
    /// # Errors
    /// [`SettingsError`] names the setting, and where it comes from.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        flags: &[(&str, String)],
    ) -> Result<Settings, SettingsError> {
        let defaults = Config::try_from(&Settings::default())?;
        let mut builder = Config::builder().add_source(defaults);
        if let Some(file) = file {
            builder = builder.add_source(File::from(file).format(FileFormat::Toml));
        }
        let known: Map<String, String> =
            environment.filter(|(name, _)| field(name).is_some()).map(|(n, v)| (strip(&n), v)).collect();
        let environment = Environment::default().separator("__").try_parsing(true).source(Some(known));
        builder = builder.add_source(environment);
        for (name, value) in flags {
            let origin = format!("the flag --{}", name.replace('_', "-"));
            builder = builder.set_override(*name, Value::new(Some(&origin), value.clone()))?;
        }
        let settings: Settings = builder.build()?.try_deserialize()?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        match self.insecure {
            Insecure::No => {}
            _ if self.tls.is_some() => return Err(SettingsError::SecureAndInsecure),
            Insecure::Loopback if !self.listen.ip().is_loopback() => {
                return Err(SettingsError::InsecureAnywhere(self.listen));
            }
            Insecure::Loopback | Insecure::Anywhere => {}
        }
        let limits = &self.limits;
        for (setting, value, least) in [
            ("arena", self.arena.0, 1 << 20),
            ("session_ttl_ms", self.session_ttl_ms, 1000),
            ("token_ttl_ms", self.token_ttl_ms, 100),
            ("open_files_max", self.open_files_max as u64, 1),
            ("limits.sessions_max", limits.sessions_max as u64, 1),
            ("limits.files_max", limits.files_max as u64, 1),
            ("limits.leases_max", limits.leases_max as u64, 1),
            ("limits.leases_per_session_max", limits.leases_per_session_max as u64, 1),
            ("limits.requests_max", limits.requests_max as u64, 1),
            ("limits.acquire_ranges_max", limits.acquire_ranges_max as u64, 1),
            ("limits.lease_bytes_max", limits.lease_bytes_max.0, 4096),
            ("limits.connections_max", limits.connections_max as u64, 1),
            ("limits.connections_per_address_max", limits.connections_per_address_max as u64, 1),
            ("limits.connections_per_second_max", limits.connections_per_second_max.into(), 1),
        ] {
            if value < least {
                return Err(SettingsError::TooSmall { setting, value, least });
            }
        }
        Ok(())
    }

    /// The control port's part.
    pub(crate) fn door(&self) -> door::Limits {
        door::Limits {
            connections_max: self.limits.connections_max,
            connections_per_address_max: self.limits.connections_per_address_max,
            connections_per_second_max: self.limits.connections_per_second_max,
        }
    }

    /// The engine's part.
    #[must_use]
    pub fn engine(&self, directory: &Path) -> engine::Config {
        let limits = self.limits;
        engine::Config {
            arena_bytes: self.arena.0,
            pages: match self.pages {
                PageKind::Auto => Pages::Auto,
                PageKind::Normal => Pages::Normal,
                PageKind::Huge => Pages::Huge,
            },
            data_address: self.data,
            grace_ms: self.grace_ms,
            fence_ms: self.fence_ms,
            on_expiry: match self.on_expiry {
                Expiry::FenceLease => OnExpiry::FenceLease,
                Expiry::EndSession => OnExpiry::EndSession,
            },
            retry_ms: self.retry_ms,
            session_ttl_ms: self.session_ttl_ms,
            token_ttl_ms: self.token_ttl_ms,
            drain_ms: self.drain_ms,
            open_files_max: self.open_files_max,
            strict_placement: self.strict_placement,
            fabric: self.fabric.kind(),
            limits: Limits {
                sessions_max: limits.sessions_max,
                files_max: limits.files_max,
                leases_max: limits.leases_max,
                leases_per_session_max: limits.leases_per_session_max,
                requests_max: limits.requests_max,
                acquire_ranges_max: limits.acquire_ranges_max,
                lease_bytes_max: limits.lease_bytes_max.0,
                breaks_per_lease_max: limits.breaks_per_lease_max,
                captures_per_lease_max: limits.captures_per_lease_max,
                remembered_per_session_max: limits.remembered_per_session_max,
            },
            ..engine::Config::new(directory)
        }
    }

    /// As a TOML file that sets them.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("settings are plain values")
    }
}

/// The variables of ours that are no setting: typing errors, most likely. Some belong to other parts of Leasehold.
pub fn unknown_variables(environment: impl Iterator<Item = (String, String)>) -> Vec<String> {
    environment
        .map(|(name, _)| name)
        .filter(|name| name.starts_with(ENVIRONMENT_PREFIX) && field(name).is_none() && name != CREDENTIALS)
        .collect()
}

fn strip(variable: &str) -> String {
    variable[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase()
}

/// Whether a variable names a setting.
fn field(variable: &str) -> Option<()> {
    variable.strip_prefix(ENVIRONMENT_PREFIX)?;
    let known = toml::Value::try_from(Settings::default()).expect("settings are plain values");
    let name = strip(variable);
    let found = match name.split_once("__") {
        Some((table, key)) => known.get(table).and_then(|table| table.get(key)).is_some(),
        None => {
            matches!(name.as_str(), "socket" | "tls")
                || known.get(&name).is_some_and(|value| !value.is_table())
        }
    };
    found.then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn a_value_with_which_nothing_could_be_served_is_refused() {
        for (name, value) in [("arena", "4K"), ("session_ttl_ms", "0"), ("limits.sessions_max", "0")] {
            let error = Settings::load(None, environment(&[]), &[(name, value.to_owned())]).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn flags_override_the_environment_which_overrides_the_file_which_overrides_the_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("leasehold.toml");
        let text = "grace_ms = 1\nfence_ms = 1\nretry_ms = 1\narena = \"1GiB\"\n[limits]\nsessions_max = 7\n";
        std::fs::write(&file, text).unwrap();
        let variables = environment(&[
            ("LEASEHOLD_FENCE_MS", "2"),
            ("LEASEHOLD_RETRY_MS", "2"),
            ("LEASEHOLD_LIMITS__LEASES_MAX", "9"),
        ]);
        let settings = Settings::load(Some(&file), variables, &[("retry_ms", "3".to_owned())]).unwrap();
        let defaults = Settings::default();
        assert_eq!((settings.grace_ms, settings.fence_ms, settings.retry_ms), (1, 2, 3));
        assert_eq!(settings.arena, Size(1 << 30));
        assert_eq!((settings.limits.sessions_max, settings.limits.leases_max), (7, 9));
        assert_eq!(settings.drain_ms, defaults.drain_ms);
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("leasehold.toml");
        let settings = Settings { socket: Some("/run/l.sock".into()), ..Settings::default() };
        std::fs::write(&file, settings.to_toml()).unwrap();
        assert_eq!(Settings::load(Some(&file), environment(&[]), &[]).unwrap(), settings);
    }

    #[test]
    fn without_credentials_only_this_machine_is_served_unless_the_operator_means_it() {
        let load = |flags: &[(&'static str, &str)]| {
            let flags: Vec<_> = flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            Settings::load(None, environment(&[]), &flags).map(|settings| settings.insecure)
        };
        let everywhere = ("listen", "0.0.0.0:7117");
        assert_eq!(load(&[]).unwrap(), Insecure::No);
        assert_eq!(load(&[everywhere]).unwrap(), Insecure::No);
        assert_eq!(load(&[("insecure", "loopback")]).unwrap(), Insecure::Loopback);
        assert_eq!(load(&[("insecure", "loopback"), ("listen", "[::1]:1")]).unwrap(), Insecure::Loopback);
        assert_eq!(load(&[("insecure", "anywhere"), everywhere]).unwrap(), Insecure::Anywhere);
        let refused = load(&[("insecure", "loopback"), everywhere]).unwrap_err().to_string();
        assert!(refused.contains("0.0.0.0:7117") && refused.contains("--insecure=anywhere"), "{refused}");
        let refused = load(&[("insecure", "loopback"), ("tls", "/etc/leasehold")]).unwrap_err().to_string();
        assert!(refused.contains("`tls` and `insecure`"), "{refused}");
    }

    #[test]
    fn a_wrong_setting_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("leasehold.toml");
        std::fs::write(&file, "graze_ms = 1\n").unwrap();
        let error = Settings::load(Some(&file), environment(&[]), &[]).unwrap_err().to_string();
        assert!(error.contains("graze_ms"), "{error}");

        let wrong = environment(&[("LEASEHOLD_GRACE_MS", "soon")]);
        let error = Settings::load(None, wrong, &[]).unwrap_err().to_string();
        assert!(error.contains("grace_ms") && error.contains("environment"), "{error}");

        let error = Settings::load(None, environment(&[]), &[("arena", "1 parsec".to_owned())]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("is not a unit") && error.contains("key `arena`"), "{error}");
    }

    #[test]
    fn variables_that_are_no_setting_are_found_and_do_no_harm() {
        let variables = [
            ("LEASEHOLD_GRAZE_MS", "1"),
            ("LEASEHOLD_LIMITS", "2"),
            ("LEASEHOLD_LOG", "debug"),
            ("HOME", "/"),
        ];
        assert_eq!(unknown_variables(environment(&variables)), ["LEASEHOLD_GRAZE_MS", "LEASEHOLD_LIMITS"]);
        assert_eq!(Settings::load(None, environment(&variables), &[]).unwrap().log, "debug");
    }
}
