//! The messages between Leasehold's ends, each carried in one RDMAP Send, in order behind the data.
//!
//! Integers are big-endian, as everywhere on this wire. A third-party peer (a verbs program on siw or an iWARP NIC)
//! speaks these with plain Sends.
//!
//! ```text
//! Commit    01 | flags 1 | zero 2 | crc32c 4 | request 8 | lease 8                                 24 bytes
//!           flags bit 0: crc32c is present (of all bytes of the leased range, in order)
//! Fetch     02 | zero 3  | sink tag 4 | request 8 | lease 8 | offset 8 | length 8 | sink offset 8  48 bytes
//!           asks for `length` bytes at `offset` of a read lease, by RDMA Write into the sender's sink
//! Committed 81 | status 1 | zero 6 | request 8 | size 8 | text                                     24 bytes + text
//! Fetched   82 | status 1 | zero 6 | request 8 | text                                              16 bytes + text
//! ```
//! `request` is the sender's own number and comes back in the answer. `text` is UTF-8, for people, and present only if
//! `status` is not [`Status::Ok`].

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// It took effect.
    Ok = 0,
    /// No such lease of this session; it was never granted, or it is over.
    NoLease = 1,
    /// A commit of a read lease, or a fetch of a write lease.
    WrongAccess = 2,
    /// The lease was broken, and revoked at its deadline.
    Revoked = 3,
    /// The CRC does not match the bytes.
    Mismatch = 4,
    /// The connection failed a checksum.
    Poisoned = 5,
    /// The fence could not be proven.
    Unproven = 6,
    /// The file was removed.
    Removed = 7,
    /// No space.
    NoSpace = 8,
    /// The disk, or a checksum on it.
    Io = 9,
    /// Outside the leased range.
    OutOfBounds = 10,
}
