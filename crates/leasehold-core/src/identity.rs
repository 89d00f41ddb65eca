//! Who somebody is, as far as we can know it.

use alloc::string::String;

/// Who holds a lease, or who breaks one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The machine, by name or address.
    pub host: String,
    /// The process on that machine.
    pub pid: u32,
    /// The user on that machine.
    pub uid: u32,
    /// The program's name.
    pub program: String,
    /// Whether somebody other than the process itself vouches for the above.
    pub evidence: Evidence,
}

/// How far an [`Identity`] can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// The kernel says so (`SO_PEERCRED` on a unix socket, or a request through a mount).
    Verified,
    /// The host begins with the name by which the peer has shown who it is (a certificate, or a token), and a slash; the rest
    /// it says itself.
    Authenticated,
    /// The process says so itself.
    Claimed,
}
