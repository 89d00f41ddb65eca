//! Where a file is: `leasehold://HOST[:PORT]/PATH`.
//!
//! The path is taken literally: nothing is percent-decoded, `?` and `#` are ordinary characters. What `ls` prints can
//! be pasted behind the host.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The control plane's port where a URL names none.
pub const DEFAULT_CONTROL_PORT: u16 = 7117;

const SCHEME: &str = "leasehold://";

/// A server, by the way to its control plane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// Over TCP.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The control plane's port.
        port: u16,
    },
    /// Over a unix socket: callers are verified by the kernel.
    Unix(PathBuf),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Server::Tcp { host, port } if host.contains(':') => write!(f, "{SCHEME}[{host}]:{port}"),
            Server::Tcp { host, port } => write!(f, "{SCHEME}{host}:{port}"),
            Server::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A file or directory on a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// Where to connect.
    pub server: Server,
    /// From the root of the store; begins with a slash.
    pub path: String,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Server::Tcp { .. } => write!(f, "{}{}", self.server, self.path),
            Server::Unix(_) => f.write_str(&self.path),
        }
    }
}

/// Why a text is not a location.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// It does not begin with the scheme.
    #[error("{0:?} is not of the form leasehold://HOST[:PORT]/PATH")]
    Scheme(String),
    /// Nothing between the slashes.
    #[error("{0:?} names no host; write leasehold://HOST[:PORT]/PATH")]
    NoHost(String),
    /// The part behind the colon.
    #[error("{port:?} in {url:?} is not a port; ports are 1 to 65535")]
    Port {
        /// The whole text.
        url: String,
        /// The part that should be a port.
        port: String,
    },
    /// A bracket without its partner, or an address without brackets.
    #[error("{0:?}: write an IPv6 address in brackets, such as leasehold://[::1]:7117/PATH")]
    Brackets(String),
    /// A character that no host has.
    #[error("{host:?} in {url:?} is not a host name or address")]
    Host {
        /// The whole text.
        url: String,
        /// The part that should be a host.
        host: String,
    },
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(url: &str) -> Result<Location, LocationError> {
        let rest = url.strip_prefix(SCHEME).ok_or_else(|| LocationError::Scheme(url.to_owned()))?;
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let (host, port) = split_authority(url, authority)?;
        let port = match port {
            None => DEFAULT_CONTROL_PORT,
            Some(text) => text
                .parse()
                .ok()
                .filter(|port| *port != 0 && !text.starts_with('+'))
                .ok_or_else(|| LocationError::Port { url: url.to_owned(), port: text.to_owned() })?,
        };
        if host.is_empty() {
            return Err(LocationError::NoHost(url.to_owned()));
        }
        let known = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if !host.chars().all(known) {
            return Err(LocationError::Host { url: url.to_owned(), host: host.to_owned() });
        }
        Ok(Location { server: Server::Tcp { host: host.to_owned(), port }, path: path.to_owned() })
    }
}

/// The host without brackets, and the text behind the colon.
fn split_authority<'a>(url: &str, authority: &'a str) -> Result<(&'a str, Option<&'a str>), LocationError> {
    let brackets = || LocationError::Brackets(url.to_owned());
    if let Some(inside) = authority.strip_prefix('[') {
        let (host, behind) = inside.split_once(']').ok_or_else(brackets)?;
        return match behind.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if behind.is_empty() => Ok((host, None)),
            None => Err(brackets()),
        };
    }
    match authority.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(brackets()),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((authority, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, path: &str) -> Location {
        Location { server: Server::Tcp { host: host.to_owned(), port }, path: path.to_owned() }
    }

    #[test]
    fn urls_name_a_host_a_port_and_a_path() {
        for (url, location) in [
            ("leasehold://h/a/b", tcp("h", 7117, "/a/b")),
            ("leasehold://h", tcp("h", 7117, "/")),
            ("leasehold://h:1/", tcp("h", 1, "/")),
            ("leasehold://10.0.0.1:7000/x y?#%20", tcp("10.0.0.1", 7000, "/x y?#%20")),
            ("leasehold://[::1]:9/x", tcp("::1", 9, "/x")),
            ("leasehold://[fe80::1%eth0]/x", tcp("fe80::1%eth0", 7117, "/x")),
            ("leasehold://h//x", tcp("h", 7117, "//x")),
        ] {
            assert_eq!(url.parse(), Ok(location), "{url}");
        }
    }

    #[test]
    fn a_location_prints_as_a_url_that_parses_to_itself() {
        for url in ["leasehold://h:7117/a", "leasehold://[::1]:9/x"] {
            assert_eq!(url.parse::<Location>().unwrap().to_string(), url);
        }
    }

    #[test]
    fn a_bad_url_says_what_is_wrong_with_it() {
        for (url, says) in [
            ("/tmp/x", r#""/tmp/x" is not of the form leasehold://HOST[:PORT]/PATH"#),
            ("http://h/x", r#""http://h/x" is not of the form leasehold://HOST[:PORT]/PATH"#),
            ("leasehold:///x", r#""leasehold:///x" names no host; write leasehold://HOST[:PORT]/PATH"#),
            ("leasehold://:1/x", r#""leasehold://:1/x" names no host; write leasehold://HOST[:PORT]/PATH"#),
            ("leasehold://h:0/x", r#""0" in "leasehold://h:0/x" is not a port; ports are 1 to 65535"#),
            ("leasehold://h:/x", r#""" in "leasehold://h:/x" is not a port; ports are 1 to 65535"#),
            (
                "leasehold://h:65536/",
                r#""65536" in "leasehold://h:65536/" is not a port; ports are 1 to 65535"#,
            ),
            (
                "leasehold://::1/x",
                r#""leasehold://::1/x": write an IPv6 address in brackets, such as leasehold://[::1]:7117/PATH"#,
            ),
            (
                "leasehold://[::1/x",
                r#""leasehold://[::1/x": write an IPv6 address in brackets, such as leasehold://[::1]:7117/PATH"#,
            ),
            ("leasehold://me@h/x", r#""me@h" in "leasehold://me@h/x" is not a host name or address"#),
        ] {
            assert_eq!(url.parse::<Location>().unwrap_err().to_string(), says, "{url}");
        }
    }
}
