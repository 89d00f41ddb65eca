//! What one connection exposes to its peer, and the fence: a key is live, then revoked, then fenced, which is proven once the
//! device has deregistered it.
//!
//! Deregistration waits for what the device is doing under the key, so a peer that stalls in the middle of a message can
//! delay it. It is done by a thread of the connection's own, for as long as it takes; whoever fences waits for it as long as
//! they like.
//!
//! Invariant: [`State::Fenced`] is entered only when the device has said, in a way that it can be believed
//! ([`Registered::deregister`]), that the key is over; and no request of this end uses its memory ([`Key::users`] is 0).

use super::resources::{Device, Registered};
use crate::{ExposeError, OperationError, Region, RemoteAccess, Tag};
use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Tags of one connection.
pub(crate) struct Keys {
    table: Mutex<Table>,
    changed: Condvar,
    device: Device,
    /// How long a peer that can say so may take to write its last. Those that take longer are cut off by the device, which ends
    /// their connection if they write on.
    drain: Duration,
}

struct Table {
    keys: HashMap<u32, Key>,
    /// All that there ever were: a device may give a number again.
    used: HashSet<u32>,
    /// No more keys, and the peer need not be waited for: the connection ends.
    ending: bool,
}

struct Key {
    /// The address of the first byte, as the device knows it.
    first: u64,
    length: u64,
    access: RemoteAccess,
    /// `None` once it is deregistered, or being so.
    registered: Option<Registered>,
    /// As above.
    region: Option<Region>,
    state: State,
    /// Requests of this end that use the memory.
    users: u32,
    forgotten: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    /// Until the peer has drained, or was waited for so long.
    Revoked {
        until: Instant,
    },
    /// It was deregistered, and that proves it.
    Fenced,
    /// It was deregistered, and that proves nothing. The memory is never let go.
    Unproven,
}

/// Memory that a request of this end may use until [`Keys::unuse`].
pub(crate) struct Used {
    pub(crate) address: u64,
    pub(crate) local_key: u32,
}

/// A page of the device's.
const PAGE: usize = 4096;

/// What the device and the peer call a region's first byte: its place within a page, since devices map pages.
pub(crate) fn first_address(region: &Region) -> u64 {
    (region.base().addr().get() % PAGE) as u64
}

impl Keys {
    pub(crate) fn new(device: Device, drain: Duration) -> Keys {
        let table = Table { keys: HashMap::new(), used: HashSet::new(), ending: false };
        Keys { table: Mutex::new(table), changed: Condvar::new(), device, drain }
    }

    /// Takes what `register` makes of a region, until its number is new.
    pub(crate) fn expose(
        &self,
        region: Region,
        access: RemoteAccess,
        tags_max: usize,
        register: impl Fn(&Region) -> Result<Registered, ExposeError>,
    ) -> Result<Tag, ExposeError> {
        let max = tags_max.min(self.device.regions_max);
        let room = |table: &Table| match table {
            table if table.ending => Err(ExposeError::Closed),
            table if table.keys.len() >= max => Err(ExposeError::TooMany { max }),
            _ => Ok(()),
        };
        room(&self.lock())?;
        if let Some(sums) = region.sums().filter(|_| access.writes()) {
            sums.forget_at(region.base().addr().get(), region.length());
        }
        let mut known = Vec::new();
        loop {
            let registered = register(&region)?;
            let tag = Tag(registered.remote_key());
            let mut table = self.lock();
            room(&table)?;
            if !table.used.insert(tag.0) {
                // Kept until there is another, so that the device does not give the same again.
                known.push(registered);
                continue;
            }
            let key = Key {
                first: first_address(&region),
                length: region.length() as u64,
                access,
                registered: Some(registered),
                region: Some(region),
                state: State::Live,
                users: 0,
                forgotten: false,
            };
            table.keys.insert(tag.0, key);
            return Ok(tag);
        }
    }

    /// From now on no request of this end begins to use it. Whether it was live.
    pub(crate) fn revoke(&self, tag: Tag, waits_for_peer: bool) -> bool {
        let mut table = self.lock();
        let is_ending = table.ending;
        let Some(key) = table.keys.get_mut(&tag.0).filter(|key| key.state == State::Live) else {
            return false;
        };
        let drain = if waits_for_peer && !is_ending { self.drain } else { Duration::ZERO };
        key.state = State::Revoked { until: Instant::now() + drain };
        self.changed.notify_all();
        true
    }

    /// The peer wrote its last. `false`: there is no such tag.
    pub(crate) fn drained(&self, tag: Tag) -> bool {
        let mut table = self.lock();
        let Some(key) = table.keys.get_mut(&tag.0) else { return false };
        if let State::Live | State::Revoked { .. } = key.state {
            key.state = State::Revoked { until: Instant::now() };
            self.changed.notify_all();
        }
        true
    }

    /// Waits for the proof that a revoked tag is over. Unknown tags are.
    pub(crate) fn prove(&self, tag: Tag, patience: Duration) -> bool {
        let unfenced =
            |table: &mut Table| table.keys.get(&tag.0).is_some_and(|key| key.state != State::Fenced);
        let waited = self.changed.wait_timeout_while(self.lock(), patience, unfenced);
        let (_table, waited) = waited.expect("no code panics while it holds the keys");
        !waited.timed_out()
    }

    /// The peer knows that it is over. The memory of one that is not fenced is kept until that.
    pub(crate) fn forget(&self, tag: Tag) -> bool {
        let mut table = self.lock();
        let Some(key) = table.keys.get_mut(&tag.0) else { return false };
        match key.state {
            State::Fenced => drop(table.keys.remove(&tag.0)),
            State::Live => {
                key.forgotten = true;
                key.state = State::Revoked { until: Instant::now() };
                self.changed.notify_all();
            }
            State::Revoked { .. } | State::Unproven => key.forgotten = true,
        }
        true
    }

    /// Whether a part of it may be used for such an access, by a request of this end.
    pub(crate) fn check(
        &self,
        tag: Tag,
        wanted: RemoteAccess,
        offset: u64,
        length: u64,
    ) -> Result<(), OperationError> {
        let table = self.lock();
        let key = table.keys.get(&tag.0).filter(|key| key.state == State::Live);
        let key = key.ok_or(OperationError::Revoked(tag))?;
        if key.access.writes() != wanted.writes() {
            return Err(OperationError::WrongAccess(tag));
        }
        let end = offset.checked_add(length).filter(|end| *end <= key.length);
        end.map(drop).ok_or(OperationError::OutOfBounds { tag, offset, length })
    }

    /// Memory for a request of this end, unless it is revoked. What is used was checked.
    pub(crate) fn use_at(&self, tag: Tag, offset: u64) -> Option<Used> {
        let mut table = self.lock();
        let key = table.keys.get_mut(&tag.0).filter(|key| key.state == State::Live)?;
        assert!(offset <= key.length, "what a request uses was checked to be within the region");
        key.users += 1;
        let local_key = key.registered.as_ref().expect("live keys are registered").local_key();
        Some(Used { address: key.first + offset, local_key })
    }

    /// The request is done.
    pub(crate) fn unuse(&self, tag: Tag) {
        let mut table = self.lock();
        let key = table.keys.get_mut(&tag.0).expect("what is used is kept");
        key.users -= 1;
        if key.users == 0 {
            self.changed.notify_all();
        }
    }

    /// Deregisters what is revoked, until the connection has ended and all are.
    pub(crate) fn fencer(&self) {
        let mut table = self.lock();
        loop {
            let now = Instant::now();
            let (mut due, mut next) = (None, None::<Instant>);
            for (tag, key) in &table.keys {
                match key.state {
                    State::Revoked { until } if key.registered.is_some() && key.users == 0 => {
                        if until <= now || table.ending {
                            due = Some(*tag);
                            break;
                        }
                        next = Some(next.map_or(until, |next| next.min(until)));
                    }
                    _ => {}
                }
            }
            table = match (due, next) {
                (Some(tag), _) => self.deregister(table, tag),
                (None, None) if table.ending => return,
                (None, Some(next)) => {
                    let left = next.saturating_duration_since(now);
                    self.changed.wait_timeout(table, left).expect("no code panics while it holds the keys").0
                }
                (None, None) => self.changed.wait(table).expect("no code panics while it holds the keys"),
            };
        }
    }

    fn deregister<'a>(&'a self, mut table: MutexGuard<'a, Table>, tag: u32) -> MutexGuard<'a, Table> {
        let key = table.keys.get_mut(&tag).expect("just found");
        let (registered, access) = (key.registered.take().expect("just found to be registered"), key.access);
        let region = key.region.take().expect("kept until now");
        drop(table);
        let is_proven = registered.deregister(&self.device);
        if is_proven {
            // Somebody may have noted a sum while the peer was writing.
            if let Some(sums) = region.sums().filter(|_| access.writes()) {
                sums.forget_at(region.base().addr().get(), region.length());
            }
            // Before anybody hears of it: who fences takes the memory to be free.
            drop(region);
        } else {
            std::mem::forget(region);
        }
        let mut table = self.lock();
        let key = table.keys.get_mut(&tag).expect("a key is kept until it is fenced");
        key.state = if is_proven { State::Fenced } else { State::Unproven };
        if is_proven && key.forgotten {
            table.keys.remove(&tag);
        }
        self.changed.notify_all();
        table
    }

    /// The connection is over, and its queue pair destroyed: all keys are revoked, and [`Keys::fencer`] ends with the last.
    pub(crate) fn end(&self) {
        let mut table = self.lock();
        table.ending = true;
        let now = Instant::now();
        for key in table.keys.values_mut() {
            key.forgotten = true;
            if key.state == State::Live {
                key.state = State::Revoked { until: now };
            }
            // The requests were flushed with the queue pair.
            key.users = 0;
        }
        table.keys.retain(|_, key| key.state != State::Fenced);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no code panics while it holds the keys")
    }
}
