//! `leasehold cert`: a private certificate authority, and what it signs. For those who have no other.
//!
//! ```text
//! DIR/ca.key --signs--> DIR/ca.pem, DIR/server.pem (+ server.key)   the setting `tls` of a server
//!                       NAME.toml: ca, certificate, key             --credentials of a client
//! ```
//! A server's certificate is good for its host names only, a client's for being a client only.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::show;
use crate::server::tls::{CA, CERTIFICATE, KEY};
use anyhow::Context as _;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const CA_KEY: &str = "ca.key";
const CA_NAME: &str = "Leasehold CA";
/// Clocks differ.
const EARLIER: Duration = Duration::from_secs(3600);

/// Make certificates for a server and its clients
///
/// First `ca`, then `server`, then a `client` for each. Whoever has ca.key can make more of them: keep it where neither the
/// server nor a client can read it.
#[derive(Debug, clap::Args)]
pub(crate) struct Cert {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make the authority that signs the others: DIR/ca.pem and DIR/ca.key
    Ca {
        #[command(flatten)]
        directory: Directory,
        /// How long it is good
        #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Make a server's: DIR/server.pem and DIR/server.key, for `serve --tls`
    Server {
        #[command(flatten)]
        directory: Directory,
        /// The names and addresses by which clients know the server
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
        /// How long it is good
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
    /// Make a client's credentials, for --credentials: one file, DIR/NAME.toml
    Client {
        #[command(flatten)]
        directory: Directory,
        /// Who it is: lower-case letters, digits, dots and dashes
        #[arg(value_parser = name_in_a_certificate)]
        name: String,
        /// Write them there instead
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// How long they are good
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
    },
}

#[derive(Debug, clap::Args)]
struct Directory {
    /// Where the authority's certificate and key are
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// A name that can stand in a certificate, in a configuration, and in a path.
pub(crate) fn name_in_a_certificate(text: &str) -> Result<String, String> {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let is_name = text.len() <= 63 && text.chars().all(known) && !text.contains("..");
    let is_address = text.parse::<std::net::IpAddr>().is_ok();
    match is_name && ends(text.chars().next()) && ends(text.chars().last()) && !is_address {
        true => Ok(text.to_owned()),
        false => {
            Err("a name has up to 63 lower-case letters, digits, dots and dashes, such as train-7".to_owned())
        }
    }
}

impl Cert {
    pub(crate) async fn run(self, common: &Common) -> Outcome {
        let made = match self.what {
            What::Ca { directory, days } => make_ca(&directory.directory, days)?,
            What::Server { directory, hosts, days } => make_server(&directory.directory, hosts, days)?,
            What::Client { directory: Directory { directory }, name, output, days } => {
                let output = output.unwrap_or_else(|| directory.join(format!("{name}.toml")));
                make_client(&directory, &name, output, days)?
            }
        };
        if common.json {
            return Ok(show::json_document(&json!({ "files": made }))?);
        }
        made.iter().try_for_each(|path| Ok(show::line(path.display())?))
    }
}

fn make_ca(directory: &Path, days: u32) -> anyhow::Result<Vec<PathBuf>> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let (certificate, key) = (directory.join(CA), directory.join(CA_KEY));
    for path in [&certificate, &key] {
        if path.exists() {
            let text = format!(
                "{} exists already; a new authority would not know what the old one signed: take another directory",
                path.display()
            );
            return Err(Failure::new(Exit::Usage, text).into());
        }
    }
    let pair = KeyPair::generate()?;
    let mut params = params(CA_NAME, days)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    secret(&key, &pair.serialize_pem())?;
    public(&certificate, &params.self_signed(&pair)?.pem())?;
    Ok(vec![certificate, key])
}

fn make_server(directory: &Path, hosts: Vec<String>, days: u32) -> anyhow::Result<Vec<PathBuf>> {
    let name = hosts[0].clone();
    let names = CertificateParams::new(hosts)
        .map_err(|error| Failure::new(Exit::Usage, format!("a host is not a name or an address: {error}")))?;
    let mut params = params(&name, days)?;
    params.subject_alt_names = names.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (signed, pair) = sign(directory, params)?;
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    secret(&key, &pair.serialize_pem())?;
    public(&certificate, &signed.pem())?;
    Ok(vec![certificate, key])
}

fn make_client(directory: &Path, name: &str, output: PathBuf, days: u32) -> anyhow::Result<Vec<PathBuf>> {
    let mut params = params(name, days)?;
    params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (signed, pair) = sign(directory, params)?;
    let ca = read(&directory.join(CA))?;
    let (certificate, key) = (signed.pem(), pair.serialize_pem());
    secret(
        &output,
        &format!(
            "# Credentials for Leasehold: whoever has this file is {name:?} to the servers of this authority.\n\
             ca = '''\n{ca}'''\ncertificate = '''\n{certificate}'''\nkey = '''\n{key}'''\n"
        ),
    )?;
    Ok(vec![output])
}

fn params(name: &str, days: u32) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (SystemTime::now() - EARLIER).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(u64::from(days) * 86_400)).into();
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Signs with the authority in the directory, for a new key.
fn sign(directory: &Path, mut params: CertificateParams) -> anyhow::Result<(Certificate, KeyPair)> {
    let path = directory.join(CA_KEY);
    let authority = KeyPair::from_pem(&read(&path)?);
    let authority = authority.with_context(|| format!("{} is not a private key", path.display()))?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // What `make_ca` calls itself is all that a signature says of its maker, beside the key.
    let issuer = Issuer::new(self::params(CA_NAME, 1)?, authority);
    let pair = KeyPair::generate()?;
    Ok((params.signed_by(&pair, &issuer)?, pair))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let text = format!("there is no {}; make an authority with `leasehold cert ca`", path.display());
            Failure::new(Exit::Usage, text).into()
        }
        _ => anyhow::Error::from(error).context(format!("cannot read {}", path.display())),
    })
}

pub(crate) fn public(path: &Path, text: &str) -> Outcome {
    write(path, text, 0o644)
}

/// Only for the owner, from the first moment on.
pub(crate) fn secret(path: &Path, text: &str) -> Outcome {
    write(path, text, 0o600)
}

/// Writes a new file, and gives it its name once it is whole: what was there before is replaced.
fn write(path: &Path, text: &str, mode: u32) -> Outcome {
    let written = || -> std::io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_name_is_one_everywhere() {
        for name in ["train-7", "a", "node.rack2", "7"] {
            assert_eq!(name_in_a_certificate(name).as_deref(), Ok(name));
        }
        for name in ["", "Train", "a/b", "..", "-a", "a-", "10.0.0.1", "a b", "ü", &"x".repeat(64)] {
            assert!(name_in_a_certificate(name).is_err(), "{name:?}");
        }
    }
}
