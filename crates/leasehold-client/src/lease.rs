//! A lease in the holder's hands.

use crate::buffer::Buffer;
use crate::data::{Answer, Closed};
use crate::error::{CallError, CaptureError, CommitError, ReadError, Reason, SyncError, WriteError};
use crate::session::Shared;
use crate::written::{NoCrc, Written};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use leasehold_core::identity::{Evidence, Identity};
use leasehold_core::ids::{BreakId, LeaseId};
use leasehold_core::input::Access;
use leasehold_core::range::ByteRange;
use leasehold_fabric::message::Status;
use leasehold_fabric::{Remote, Tag};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long the proof may take that the server is done with a buffer of ours.
const FENCE_PATIENCE: Duration = Duration::from_secs(1);

/// The most bytes of one capture: the server needs as many free frames for its copy.
const CAPTURE_BYTES: u64 = 4 << 20;
/// How many captures of one [`Lease::sync`] are under way at once.
const CAPTURES_AT_ONCE: usize = 4;

/// The right to one byte range of one file, tied to one key.
///
/// Offsets and ranges are those of the file. Dropping a lease releases it in the background; what was written and not
/// committed leaves no trace.
pub struct Lease {
    shared: Arc<Shared>,
    id: LeaseId,
    tag: Tag,
    path: Arc<str>,
    range: ByteRange,
    access: Access,
    created: bool,
    written: Mutex<Written>,
    state: watch::Receiver<LeaseState>,
    /// Whether the server already knows that this end is done with the lease.
    over: bool,
}

/// What the session has heard about a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Nothing: it is ours.
    Live,
    /// Somebody needs the range: commit or release before the deadline.
    Breaking(BreakNotice),
    /// It is over.
    Revoked(RevokeNotice),
}

impl LeaseState {
    /// Follows the news; never back. The first break stays, since its deadline is the earliest. Whether it changed.
    pub(crate) fn advance(&mut self, news: LeaseState) -> bool {
        let forward = matches!(
            (&*self, &news),
            (LeaseState::Live, LeaseState::Breaking(_))
                | (LeaseState::Live | LeaseState::Breaking(_), LeaseState::Revoked(_))
        );
        if forward {
            *self = news;
        }
        forward
    }
}

/// Somebody needs the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakNotice {
    /// The break.
    pub id: BreakId,
    /// The lease.
    pub lease: LeaseId,
    /// The file.
    pub path: String,
    /// The leased range.
    pub range: ByteRange,
    /// Who.
    pub breaker: Identity,
    /// What for: "truncate to 0".
    pub operation: String,
    /// How long there was to answer when the notice came.
    pub grace: Duration,
    /// Until when, by this machine's clock.
    pub deadline: Instant,
}

/// A lease is over against its holder's will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokeNotice {
    /// The lease.
    pub lease: LeaseId,
    /// Why.
    pub why: String,
    /// Who broke it, if a break was the reason.
    pub by: Option<Identity>,
}

impl fmt::Display for RevokeNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            None => f.write_str(&self.why),
            Some(who) => {
                let evidence = match who.evidence {
                    Evidence::Verified => "verified",
                    Evidence::Authenticated => "authenticated",
                    Evidence::Claimed => "as it says",
                };
                write!(
                    f,
                    "{}; broken by {} (pid {} on {}, {evidence})",
                    self.why, who.program, who.pid, who.host
                )
            }
        }
    }
}

impl Lease {
    pub(crate) fn new(
        shared: Arc<Shared>,
        grant: (LeaseId, Tag),
        (path, range, access): (Arc<str>, ByteRange, Access),
        created: bool,
        state: watch::Receiver<LeaseState>,
    ) -> Lease {
        let (id, tag) = grant;
        let written = Mutex::default();
        Lease { shared, id, tag, path, range, access, created, written, state, over: false }
    }

    /// Its id, as in the server's notices.
    #[must_use]
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The leased bytes.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// What its key may do.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether its acquire created the file.
    #[must_use]
    pub fn created(&self) -> bool {
        self.created
    }

    /// The CRC32C of its range, if every byte of it was written.
    #[must_use]
    pub fn crc32c(&self) -> Option<u32> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).crc32c(self.range).ok()
    }

    /// What was heard of it so far.
    #[must_use]
    pub fn state(&self) -> LeaseState {
        self.state.borrow().clone()
    }

    /// Follows it; goes on when the lease itself is gone.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Waits until somebody breaks the lease, or it is revoked.
    pub async fn broken(&self) -> LeaseState {
        self.wait_for(|state| *state != LeaseState::Live).await
    }

    /// Waits until the lease is revoked.
    pub async fn revoked(&self) -> RevokeNotice {
        match self.wait_for(|state| matches!(state, LeaseState::Revoked(_))).await {
            LeaseState::Revoked(notice) => notice,
            LeaseState::Live | LeaseState::Breaking(_) => self.unheard(),
        }
    }

    async fn wait_for(&self, wanted: impl FnMut(&LeaseState) -> bool) -> LeaseState {
        match self.state.clone().wait_for(wanted).await {
            Ok(state) => state.clone(),
            Err(_) => LeaseState::Revoked(self.unheard()),
        }
    }

    fn unheard(&self) -> RevokeNotice {
        let why = self.shared.registry.ended().unwrap_or_else(|| "it was let go".to_owned());
        RevokeNotice { lease: self.id, why, by: None }
    }

    fn revoke_notice(&self) -> Option<Box<RevokeNotice>> {
        match &*self.state.borrow() {
            LeaseState::Revoked(notice) => Some(Box::new(notice.clone())),
            LeaseState::Live | LeaseState::Breaking(_) => None,
        }
    }

    /// Writes `bytes` at `offset` of the file, by RDMA from where they are. Returns once they are not needed any more;
    /// they may still be on their way, and [`Lease::commit`] comes behind them.
    ///
    /// # Errors
    /// Bytes that were under way when the lease was revoked are dropped by the server without an error here: the commit
    /// tells.
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<(), WriteError> {
        let Some(wanted) = ByteRange::at(offset, bytes.len() as u64) else { return Ok(()) };
        if wanted.start() < self.range.start() || wanted.end() > self.range.end() {
            return Err(WriteError::OutOfBounds { lease: self.id, leased: self.range, wanted });
        }
        if !self.access.writes() {
            return Err(WriteError::ReadOnly(self.id));
        }
        if let Some(notice) = self.revoke_notice() {
            return Err(WriteError::Revoked(notice));
        }
        self.written.lock().unwrap_or_else(PoisonError::into_inner).add(offset, &bytes);
        let to = Remote { tag: self.tag, offset: offset - self.range.start() };
        self.shared.data.write(to, bytes).await.map_err(|Closed(why)| WriteError::Closed(why))
    }

    /// Commits what was written so far in `range`, in one piece, and keeps the lease: for regions that are updated for
    /// hours. Returns the file's size once the bytes are visible; see [`Lease::sync`] for durable.
    ///
    /// The lease must be one for update: another's frames need not hold the file's bytes where nothing was written.
    ///
    /// What is written after this call was made is captured or not, byte by byte.
    ///
    /// If the future is dropped, the capture takes effect all the same.
    ///
    /// # Errors
    /// [`Status::Full`] if the server has no frames for the copy; shorter ranges need fewer.
    pub async fn capture(&self, range: ByteRange) -> Result<u64, CaptureError> {
        if range.start() < self.range.start() || range.end() > self.range.end() {
            return Err(CaptureError::OutOfBounds { lease: self.id, leased: self.range, wanted: range });
        }
        if self.access != Access::Update {
            return Err(CaptureError::NotForUpdate(self.id));
        }
        if let Some(notice) = self.revoke_notice() {
            return Err(CaptureError::Revoked(notice));
        }
        let offset = range.start() - self.range.start();
        let answer = self.shared.data.capture(self.id, offset, range.len()).await;
        let Answer { status, size, text } = answer.map_err(|Closed(why)| CaptureError::Closed(why))?;
        match (status, self.revoke_notice()) {
            (Status::Ok, _) => Ok(size),
            (Status::Revoked | Status::NoLease, Some(notice)) => Err(CaptureError::Revoked(notice)),
            _ => Err(CaptureError::Refused { status, text }),
        }
    }

    /// Makes durable what was written so far in `range`, and keeps the lease. It is captured in pieces of at most 4 MiB,
    /// so readers may see some of them before others.
    ///
    /// # Errors
    /// Some pieces may have been captured, none is known to be durable.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use bytes::Bytes;
    /// use leasehold_client::{Access, AcquireOptions, ByteRange, LeaseState, Session, Want};
    ///
    /// # async fn example(session: Session) -> Result<(), Box<dyn std::error::Error>> {
    /// let table = ByteRange::at(0, 1 << 30).expect("not empty");
    /// let want = Want { path: "/table".into(), range: table, access: Access::Update };
    /// let lease = session.acquire(&[want], AcquireOptions::default()).await?.remove(0);
    /// for row in 0..1_000_000 {
    ///     lease.write(row * 64, Bytes::from(vec![row as u8; 64])).await?;
    ///     if row % 10_000 == 9_999 {
    ///         lease.sync(ByteRange::at((row - 9_999) * 64, 640_000).expect("not empty")).await?; // durable
    ///     }
    ///     if let LeaseState::Breaking(notice) = lease.state() {
    ///         println!("{} wants to {}", notice.breaker.program, notice.operation);
    ///         lease.sync(table).await?; // what is in time is kept ..
    ///         return Ok(lease.release().await?); // .. and the breaker waits no longer
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn sync(&self, range: ByteRange) -> Result<(), SyncError> {
        let captures = pieces(range).map(|piece| self.capture(piece));
        let captures = futures_util::stream::iter(captures).buffer_unordered(CAPTURES_AT_ONCE);
        captures.try_for_each(|_size| async { Ok(()) }).await?;
        self.shared.sync(self.id).await.map_err(|error| match self.revoke_notice() {
            Some(notice) if error.reason == Reason::NoLease => CaptureError::Revoked(notice).into(),
            _ => error.into(),
        })
    }

    /// Says that the range is complete, with the CRC32C of what was written, for the server to compare with what has
    /// arrived. Returns the file's size once the key is fenced, the CRC was found right and the bytes are visible; they
    /// are durable after [`crate::Session::sync`]. The lease is over in every case.
    ///
    /// A lease for update of which not every byte was written is committed without a CRC.
    ///
    /// If the future is dropped, the commit may or may not take effect.
    pub async fn commit(self) -> Result<u64, CommitError> {
        let crc32c = self.written.lock().unwrap_or_else(PoisonError::into_inner).crc32c(self.range);
        let crc32c = match (crc32c, self.access) {
            (Ok(crc32c), _) => Some(crc32c),
            (Err(_), Access::Update) => None,
            (Err(NoCrc::Missing(missing)), _) => {
                return Err(CommitError::Incomplete { lease: self.id, leased: self.range, missing });
            }
            (Err(NoCrc::Overlapping), _) => return Err(CommitError::Overlapping(self.id)),
        };
        self.commit_with(crc32c).await
    }

    /// Like [`Lease::commit`], with a CRC32C of all bytes of the range that the caller knows by itself, or none.
    pub async fn commit_with(mut self, crc32c: Option<u32>) -> Result<u64, CommitError> {
        let answer = self.shared.data.commit(self.id, crc32c).await;
        let Answer { status, size, text } = answer.map_err(|Closed(why)| CommitError::Closed(why))?;
        if status == Status::Ok {
            self.over = true;
            return Ok(size);
        }
        Err(match (status, self.revoke_notice()) {
            (Status::Revoked | Status::NoLease, Some(notice)) => CommitError::Revoked(notice),
            _ => CommitError::Refused { status, text },
        })
    }

    /// Reads `range` of the file into the start of `buffer`, by RDMA from the server's frames, and gives the buffer back
    /// once it is proven that the server cannot write into it any more.
    ///
    /// If the future is dropped, the read goes on in the background until the buffer can be freed.
    ///
    /// # Errors
    /// The buffer is gone with an error: its content would be of no use.
    pub async fn read(&self, range: ByteRange, buffer: Buffer) -> Result<Buffer, ReadError> {
        if range.start() < self.range.start() || range.end() > self.range.end() {
            return Err(ReadError::OutOfBounds { lease: self.id, leased: self.range, wanted: range });
        }
        let length = usize::try_from(range.len()).ok().filter(|length| *length <= buffer.len());
        let length = length.ok_or(ReadError::BufferTooSmall { buffer: buffer.len(), range })?;
        if let Some(notice) = self.revoke_notice() {
            return Err(ReadError::Revoked(notice));
        }
        let exposed = buffer.expose(self.shared.data.endpoint.clone(), length)?;
        let (shared, lease, offset) = (self.shared.clone(), self.id, range.start() - self.range.start());
        let reading = tokio::spawn(async move {
            let answer = shared.data.fetch(lease, offset, range.len(), exposed.tag()).await;
            let fenced = tokio::task::spawn_blocking(move || exposed.fence(FENCE_PATIENCE)).await;
            (answer, fenced.expect("a fence does not panic"))
        });
        let (answer, fenced) = reading.await.expect("a read does not panic");
        let Answer { status, text, .. } = answer.map_err(|Closed(why)| ReadError::Closed(why))?;
        if status != Status::Ok {
            return Err(match (status, self.revoke_notice()) {
                (Status::Revoked | Status::NoLease, Some(notice)) => ReadError::Revoked(notice),
                _ => ReadError::Refused { status, text },
            });
        }
        Ok(fenced?)
    }

    /// Lets go of the lease. What was written leaves no trace. Also the answer to a break, and to a revoke.
    ///
    /// Comes behind everything that was written under the lease.
    pub async fn release(mut self) -> Result<(), CallError> {
        self.over = true;
        self.shared.registry.remove(self.id);
        match self.shared.release(self.id, self.wrote()).await {
            // It was revoked, whether we have heard of that or not: the server knows now that we are done with it.
            Err(error) if error.reason == Reason::NoLease => Ok(()),
            released => released,
        }
    }

    /// Takes the lease for released: the caller tells the server. `None` if something was written under it, which must
    /// arrive before the release; it is released in the background then.
    pub(crate) fn let_go(mut self) -> Option<LeaseId> {
        self.over = !self.wrote();
        self.over.then_some(self.id)
    }

    fn wrote(&self) -> bool {
        !self.written.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// The range in pieces that end at multiples of their longest length, so that no block is in two.
fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let mut next = range.start();
    std::iter::from_fn(move || {
        let end = (next / CAPTURE_BYTES + 1).saturating_mul(CAPTURE_BYTES).min(range.end());
        let piece = ByteRange::new(next, end)?;
        next = end;
        Some(piece)
    })
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.registry.remove(self.id);
        if !self.over {
            self.shared.registry.release_later(self.id, self.wrote());
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("id", &self.id)
            .field("path", &self.path)
            .field("range", &self.range)
            .field("access", &self.access)
            .field("state", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_sync_cover_the_range_and_share_no_block() {
        let range = ByteRange::new(CAPTURE_BYTES - 1, 3 * CAPTURE_BYTES + 5).expect("not empty");
        let pieces: Vec<(u64, u64)> = pieces(range).map(|piece| (piece.start(), piece.end())).collect();
        let at = |n: u64| n * CAPTURE_BYTES;
        assert_eq!(pieces, [(at(1) - 1, at(1)), (at(1), at(2)), (at(2), at(3)), (at(3), at(3) + 5)]);
    }
}
