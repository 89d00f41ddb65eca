//! The client that others embed: lease byte ranges of remote files, write into them by RDMA, commit, and hear of breaks.
//!
//! ```text
//! Client   -- gRPC -->  the server's control plane: files, leases, who waits for whom
//! Session  == iWARP ==> the server's memory: bytes of leased ranges, and the commits behind them
//! ```
//!
//! A [`Client`] does plain file operations. A [`Session`] holds [`Lease`]s: each is the right to one byte range, tied to
//! one key on the data connection. Whoever needs the range breaks the lease: the session hears who, what for, and how
//! long it may go on ([`Session::events`], [`Lease::broken`]), and loses the range at the deadline if it does not commit
//! or release.
//!
//! # Example
//!
//! ```no_run
//! use bytes::Bytes;
//! use leasehold_client::{Access, AcquireOptions, Buffer, ByteRange, Client, Session, Want};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(&"leasehold://127.0.0.1/".parse::<leasehold_client::Location>()?.server).await?;
//! client.create("/greeting").await?;
//!
//! let session = Session::open(&client).await?;
//! let range = ByteRange::at(0, 5).expect("not empty");
//! let want = Want { path: "/greeting".into(), range, access: Access::Overwrite };
//! let lease = session.acquire(&[want], AcquireOptions::default()).await?.remove(0);
//! lease.write(0, Bytes::from_static(b"hello")).await?; // by RDMA, from our buffer into the server's frames
//! lease.commit().await?; // fenced, checked, visible
//! session.sync("/greeting").await?; // durable
//!
//! let want = Want { path: "/greeting".into(), range, access: Access::Read };
//! let lease = session.acquire(&[want], AcquireOptions::default()).await?.remove(0);
//! let buffer = lease.read(range, Buffer::new(5)).await?; // by RDMA, from the server's frames into our buffer
//! assert_eq!(buffer.as_slice(), b"hello");
//! lease.release().await?;
//! session.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Unsafe
//!
//! Only [`Buffer`] is: memory that the server may write while a read is under way.
#![deny(unsafe_code)]

mod block_map;
mod buffer;
mod caller;
mod client;
pub mod convert;
mod credentials;
mod data;
mod error;
mod event;
mod fabrics;
mod lease;
mod location;
pub mod proto;
mod registry;
mod session;
mod written;

pub use block_map::{BLOCK_BYTES, BlockMap, crc32c, crc32c_of_blocks};
pub use buffer::{Buffer, Exposed};
pub use caller::this_process;
pub use client::{Client, ScrubOptions};
pub use credentials::{Credentials, CredentialsError};
pub use error::{
    CallError, CaptureError, CommitError, ConnectError, OpenError, ReadError, Reason, SyncError, WriteError,
};
pub use event::{Event, Happening};
pub use lease::{BreakNotice, Lease, LeaseState, RevokeNotice};
pub use leasehold_core::identity::{Evidence, Identity};
pub use leasehold_core::ids::{BreakId, LeaseId, RequestId, SessionId};
pub use leasehold_core::input::{Access, OnConflict};
pub use leasehold_core::range::ByteRange;
pub use leasehold_fabric::Kind as FabricKind;
pub use location::{DEFAULT_CONTROL_PORT, Location, LocationError, Server};
pub use session::{AcquireOptions, Session, Want};
