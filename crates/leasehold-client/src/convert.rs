//! Between the wire's messages and the types that the core uses: parsed once, here, at the edge.

use crate::proto;
use leasehold_core::identity::{Evidence, Identity};
use leasehold_core::input::{Access, OnConflict};
use leasehold_core::range::ByteRange;
use std::time::{Duration, SystemTime};

/// The peer sent something that the protocol does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A field that must be there is not.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// A range without a byte.
    #[error("the range {start}..{end} is empty; a range has at least one byte")]
    EmptyRange {
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// A number that stands for nothing.
    #[error("{value} is not a known value of `{field}`")]
    Unknown {
        /// Where.
        field: &'static str,
        /// What was there.
        value: i32,
    },
    /// A secret or token of the wrong length.
    #[error("`{field}` has {length} bytes; it has 16")]
    NotSixteen {
        /// Where.
        field: &'static str,
        /// What was there.
        length: usize,
    },
}

impl From<&Identity> for proto::Identity {
    fn from(identity: &Identity) -> Self {
        proto::Identity {
            host: identity.host.clone(),
            pid: identity.pid,
            uid: identity.uid,
            program: identity.program.clone(),
            verified: identity.evidence == Evidence::Verified,
            authenticated: identity.evidence == Evidence::Authenticated,
        }
    }
}

impl From<proto::Identity> for Identity {
    fn from(identity: proto::Identity) -> Self {
        let evidence = match identity {
            proto::Identity { verified: true, .. } => Evidence::Verified,
            proto::Identity { authenticated: true, .. } => Evidence::Authenticated,
            _ => Evidence::Claimed,
        };
        Identity {
            host: identity.host,
            pid: identity.pid,
            uid: identity.uid,
            program: identity.program,
            evidence,
        }
    }
}

impl From<ByteRange> for proto::Range {
    fn from(range: ByteRange) -> Self {
        proto::Range { start: range.start(), end: range.end() }
    }
}

impl TryFrom<proto::Range> for ByteRange {
    type Error = Malformed;

    fn try_from(range: proto::Range) -> Result<Self, Malformed> {
        ByteRange::new(range.start, range.end)
            .ok_or(Malformed::EmptyRange { start: range.start, end: range.end })
    }
}

/// A range that must be there.
pub fn range(field: Option<proto::Range>) -> Result<ByteRange, Malformed> {
    field.ok_or(Malformed::Missing("range"))?.try_into()
}

/// What a lease's key may do.
pub fn access(value: i32) -> Result<Access, Malformed> {
    match proto::Access::try_from(value) {
        Ok(proto::Access::Read) => Ok(Access::Read),
        Ok(proto::Access::Overwrite) => Ok(Access::Overwrite),
        Ok(proto::Access::Update) => Ok(Access::Update),
        _ => Err(Malformed::Unknown { field: "access", value }),
    }
}

/// The reverse of [`access`].
#[must_use]
pub fn access_number(access: Access) -> i32 {
    match access {
        Access::Read => proto::Access::Read,
        Access::Overwrite => proto::Access::Overwrite,
        Access::Update => proto::Access::Update,
    }
    .into()
}

/// What an acquire does about a conflict.
pub fn on_conflict(value: i32) -> Result<OnConflict, Malformed> {
    match proto::OnConflict::try_from(value) {
        Ok(proto::OnConflict::Unspecified | proto::OnConflict::Refuse) => Ok(OnConflict::Refuse),
        Ok(proto::OnConflict::Wait) => Ok(OnConflict::Wait),
        Ok(proto::OnConflict::Break) => Ok(OnConflict::Break),
        Err(_) => Err(Malformed::Unknown { field: "on_conflict", value }),
    }
}

/// The reverse of [`on_conflict`].
#[must_use]
pub fn on_conflict_number(on_conflict: OnConflict) -> i32 {
    match on_conflict {
        OnConflict::Refuse => proto::OnConflict::Refuse,
        OnConflict::Wait => proto::OnConflict::Wait,
        OnConflict::Break => proto::OnConflict::Break,
    }
    .into()
}

/// A duration for the wire; what does not fit becomes the longest that does.
#[must_use]
pub fn duration_out(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or(prost_types::Duration { seconds: 315_576_000_000, nanos: 0 })
}

/// A duration from the wire; absent and negative ones are zero.
#[must_use]
pub fn duration_in(duration: Option<prost_types::Duration>) -> Duration {
    duration.and_then(|duration| duration.try_into().ok()).unwrap_or_default()
}

/// A time from the wire; absent and impossible ones are the epoch.
#[must_use]
pub fn time_in(time: Option<prost_types::Timestamp>) -> SystemTime {
    time.and_then(|time| time.try_into().ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// 16 bytes that must be there.
pub fn sixteen(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], Malformed> {
    bytes.try_into().map_err(|_| Malformed::NotSixteen { field, length: bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_range_is_refused_with_its_bounds() {
        let error = range(Some(proto::Range { start: 7, end: 7 })).unwrap_err();
        assert_eq!(error.to_string(), "the range 7..7 is empty; a range has at least one byte");
    }

    #[test]
    fn accesses_and_conflict_rules_survive_the_wire() {
        for value in [Access::Read, Access::Overwrite, Access::Update] {
            assert_eq!(access(access_number(value)), Ok(value));
        }
        for value in [OnConflict::Refuse, OnConflict::Wait, OnConflict::Break] {
            assert_eq!(on_conflict(on_conflict_number(value)), Ok(value));
        }
        assert!(access(0).is_err(), "an access that nobody chose is not guessed");
    }

    #[test]
    fn a_duration_too_long_for_the_wire_becomes_the_longest() {
        let longest = duration_in(Some(duration_out(Duration::MAX)));
        assert!(longest > Duration::from_secs(3600 * 24 * 365 * 1000));
    }
}
