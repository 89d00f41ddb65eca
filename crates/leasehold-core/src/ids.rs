//! The names of things: small integers that cannot be mixed up.
//!
//! The core hands out [`LeaseId`], [`BreakId`] and [`WriteId`]; all others come in with the inputs. None is reused while
//! the core lives.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A client as the server knows it, from its first call until its end.
    SessionId(u64), "s"
);
id!(
    /// Whose a session is: the sessions of one tenant share what it may have.
    TenantId(u32), "t"
);
id!(
    /// An open file. The engine keeps the relation to names; hard links share one id.
    FileId(u64), "f"
);
id!(
    /// A lease, and the one key that is tied to it.
    LeaseId(u64), "l"
);
id!(
    /// Something that was asked of the core and is still owed a reply. Ids grow in order of arrival.
    RequestId(u64), "r"
);
id!(
    /// A break: one breaker against one lease.
    BreakId(u64), "b"
);
id!(
    /// One writeback: the frames of one commit on their way to the disk.
    WriteId(u64), "w"
);
id!(
    /// A frame: the memory of one block, by its place in the arena.
    FrameId(u32), "frame "
);

impl SessionId {
    /// The server itself, which writes for callers without a session (a gRPC write, later the mount). It has no key:
    /// its bytes never come from the fabric.
    pub const LOCAL: SessionId = SessionId(0);
}

/// A moment, in microseconds since some start that the caller chose. The core never reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

impl Tick {
    /// The moment `ms` milliseconds later.
    #[must_use]
    pub fn after_ms(self, ms: u64) -> Tick {
        Tick(self.0.saturating_add(ms.saturating_mul(1000)))
    }
}
