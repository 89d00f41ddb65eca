//! What is done with what an operator, or another machine's kernel, says, for fuzzing (`cargo xtask soak fuzz`): any bytes at all, and
//! nothing may happen but what each function checks.

use crate::mount::message::{self, Head};
use crate::mount::options::Options;
use crate::server::settings::Settings;
use crate::size::Size;
use leasehold_client::Location;
use leasehold_fabric::iwarp::fuzz::Target;

/// All functions: these here, and those of the engine and the fabric.
#[must_use]
pub fn targets() -> Vec<Target> {
    let own: &[Target] = &[("configuration", configuration), ("locations", locations), ("mounts", mounts)];
    [own, leasehold_engine::fuzz::TARGETS, leasehold_fabric::iwarp::fuzz::TARGETS].concat()
}

/// A configuration file: what is taken can be printed, and means the same when it is read again.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let load = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().expect("a place for a file");
        std::io::Write::write_all(&mut file, text.as_bytes()).expect("room");
        Settings::load(Some(file.path()), std::iter::empty(), &[])
    };
    if let Ok(settings) = load(text) {
        assert_eq!(load(&settings.to_toml()).expect("what was printed is read"), settings);
    }
    if let Ok(size) = text.parse::<Size>() {
        assert_eq!(size.to_string().parse(), Ok(size));
    }
}

/// A URL: what is taken names a host and a port, and means the same once it is printed.
pub fn locations(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(location) = text.parse::<Location>() {
        assert_eq!(location.to_string().parse(), Ok(location));
    }
}

/// What another machine says as its kernel's request, and the words of its `-o`.
pub fn mounts(bytes: &[u8]) {
    if let Some(head) = Head::of(bytes) {
        head.opcode.may_break();
        head.interrupts(bytes);
    }
    message::replied(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Options::parse([text], false);
    }
}
