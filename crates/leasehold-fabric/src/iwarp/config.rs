//! What can be set about the fabric.

use super::tls::ServerTls;
use std::time::Duration;

/// Settings of an [`Iwarp`](super::Iwarp) fabric. The defaults are what Leasehold runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Threads that serve connections; each connection belongs to one.
    pub workers: usize,
    /// Ask for CRCs on frames. They are used if either end asks (RFC 5044 section 7.1).
    pub crc: bool,
    /// Buffer each frame and check its CRC before anything of it is placed, as RFC 5044 section 6 has it. Without, a
    /// frame is placed as it comes, only within what the peer may write at that moment, and a wrong CRC poisons the
    /// connection. Costs a copy.
    pub strict: bool,
    /// Connect by MPA revision 2, with its negotiation of reads and of who speaks first; else by revision 1.
    pub enhanced: bool,
    /// When connecting by revision 2, send a ready-to-receive at once, so that the responder may speak first.
    pub peer_to_peer: bool,
    /// The most payload in a segment, between our own ends.
    pub segment_max: u16,
    /// The longest message that is taken.
    pub message_max: usize,
    /// How many reads at once are served to a peer (IRD), and asked of one (ORD).
    pub reads_max: u16,
    /// Tags on a connection, live and revoked.
    pub tags_max: usize,
    /// Revoked tags on a connection that the peer has not acknowledged.
    pub discarding_max: usize,
    /// Operations that wait on a connection.
    pub queue_max: usize,
    /// Connections that are set up.
    pub connections_max: usize,
    /// Peers that have connected and not shown who they are: the oldest goes when one more comes.
    pub strangers_max: usize,
    /// Those that connect to a listener do so over TLS, to one that is known by this.
    pub tls: Option<ServerTls>,
    /// How long a peer may take to set up a connection.
    pub setup_timeout: Duration,
    /// How long a closed connection waits for the peer to have read what it was sent last.
    pub linger: Duration,
    /// Let a fence return without fencing, so that tests can show that they would notice.
    #[cfg(feature = "mutation")]
    #[doc(hidden)]
    pub unsafe_skip_fence: bool,
    /// What becomes of each call to a socket of a connection.
    #[cfg(feature = "mutation")]
    #[doc(hidden)]
    pub fates: Option<super::tcp::Fates>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            workers: std::thread::available_parallelism().map_or(1, usize::from).min(4),
            crc: true,
            strict: false,
            enhanced: true,
            peer_to_peer: true,
            segment_max: 61_440,
            message_max: 4096,
            reads_max: 128,
            tags_max: 65_536,
            discarding_max: 4096,
            queue_max: 65_536,
            connections_max: 4096,
            strangers_max: 256,
            tls: None,
            setup_timeout: Duration::from_secs(5),
            linger: Duration::from_secs(1),
            #[cfg(feature = "mutation")]
            unsafe_skip_fence: false,
            #[cfg(feature = "mutation")]
            fates: None,
        }
    }
}
