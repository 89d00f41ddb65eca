//! What a client shows to a server, and by what it knows the server: one file.
//!
//! ```toml
//! ca = "ca.pem"              # whom to trust: the server's certificate was signed by it
//! certificate = "train.pem"  # who we are, ..
//! key = "train.key"          # .. and the proof
//! token = "leasehold-.."     # or in place of both
//! ```
//! Each value is PEM text, or the path of a file with it, from the directory of this one. `leasehold cert client` and
//! `leasehold tenant token` write such files, with the texts in them.

use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use tonic::{Request, Status};

/// What a client shows to a server, and by what it knows the server. Made of a file; see the module's source for its form.
#[derive(Clone)]
pub struct Credentials {
    ca: String,
    /// A certificate, and its key.
    identity: Option<(String, String)>,
    token: Option<Bearer>,
}

/// Shows a token with every call.
#[derive(Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    fn new(token: &str) -> Option<Bearer> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().ok()?;
        value.set_sensitive(true);
        Some(Bearer(value))
    }
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read the credentials {path:?}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error(
        "{path:?} is no credentials file: {why}; `leasehold cert client` and `leasehold tenant token` write such"
    )]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    ca: String,
    certificate: Option<String>,
    key: Option<String>,
    token: Option<String>,
}

impl Credentials {
    /// Reads the file.
    ///
    /// # Errors
    /// [`CredentialsError`] names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Credentials, CredentialsError> {
        let malformed = |why: String| CredentialsError::Malformed { path: path.to_owned(), why };
        let file: File =
            toml::from_str(&read(path)?).map_err(|error| malformed(error.message().to_owned()))?;
        let pem = |value: String| match value.contains("-----BEGIN ") {
            true => Ok(value),
            false => read(&path.parent().unwrap_or(Path::new("")).join(value)),
        };
        let identity = match (file.certificate, file.key) {
            (Some(certificate), Some(key)) => Some((pem(certificate)?, pem(key)?)),
            (None, None) => None,
            _ => return Err(malformed("a certificate and its key belong together".to_owned())),
        };
        let unusable = || malformed("the token has characters that no token has".to_owned());
        let token = file.token.map(|token| Bearer::new(&token).ok_or_else(unusable)).transpose()?;
        Ok(Credentials { ca: pem(file.ca)?, identity, token })
    }

    pub(crate) fn bearer(&self) -> Option<Bearer> {
        self.token.clone()
    }

    pub(crate) fn tls(&self) -> ClientTlsConfig {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca));
        match &self.identity {
            Some((certificate, key)) => tls.identity(Identity::from_pem(certificate, key)),
            None => tls,
        }
    }
}

fn read(path: &Path) -> Result<String, CredentialsError> {
    std::fs::read_to_string(path).map_err(|source| CredentialsError::Read { path: path.to_owned(), source })
}

/// What is shown with every call, if anything is.
#[derive(Clone)]
pub(crate) struct Shown(pub(crate) Option<Bearer>);

impl Interceptor for Shown {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(Bearer(value)) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("certificate", &self.identity.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(directory: &Path, text: &str) -> Result<Credentials, CredentialsError> {
        let path = directory.join("credentials.toml");
        std::fs::write(&path, text).unwrap();
        Credentials::load(&path)
    }

    #[test]
    fn values_are_text_or_files_beside_the_file_and_secrets_are_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("k"), "secret").unwrap();
        let text = "ca = '-----BEGIN CERTIFICATE-----'\ncertificate = 'k'\nkey = 'k'";
        let loaded = load(directory.path(), text).unwrap();
        assert_eq!(loaded.ca, "-----BEGIN CERTIFICATE-----");
        assert_eq!(loaded.identity, Some(("secret".to_owned(), "secret".to_owned())));
        assert!(!format!("{loaded:?}").contains("secret"), "{loaded:?}");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_path() {
        let directory = tempfile::tempdir().unwrap();
        for (text, says) in [
            ("certificate = 'x'", "missing field `ca`"),
            ("ca = '-----BEGIN '\nkey = '-----BEGIN '", "belong together"),
            ("ca = 'nowhere.pem'", "nowhere.pem"),
            ("ca = '-----BEGIN '\ntoken = 'a\\u0000'".replace('\'', "\"").as_str(), "characters"),
            ("ca = 'x'\npassword = 'y'", "password"),
        ] {
            let error = load(directory.path(), text).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(directory.path().to_str().unwrap()), "{error}");
        }
    }
}
