//! Keys: `Output::Expose`, `Output::Fence`.
//!
//! A fence is nearly always proven at once, since the receiver holds a tag only while it is inside one `recvmsg`. One
//! that is not, because the receiver was preempted there, is waited for by a thread of its own, so that a late proof
//! delays nobody else.

use super::{Granted, State, Work};
use crate::arena::Arena;
use crate::session::{Key, Session};
use crate::sync;
use leasehold_core::ids::LeaseId;
use leasehold_core::input::{Access, Fault, Input};
use leasehold_core::range::Run;
use leasehold_fabric::{Region, RemoteAccess};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the core's thread itself waits for the proof of a fence.
const FENCE_SPIN: Duration = Duration::from_micros(100);

impl State {
    pub(super) fn expose(
        &mut self,
        session: &Arc<Session>,
        lease: LeaseId,
        run: Run,
        skip: u16,
        length: u64,
        access: Access,
    ) -> Result<(), Fault> {
        let endpoint = session.endpoint().ok_or(Fault::NoKey)?;
        let range = self.parts.core.lease(lease).ok_or(Fault::NoKey)?.range;
        let region = region(&self.parts.arena, run, skip, length);
        let remote = match access {
            Access::Read => RemoteAccess::Read,
            Access::Overwrite => RemoteAccess::Write,
            // It may be captured while the peer goes on writing.
            Access::Update => RemoteAccess::WriteChecked,
        };
        let tag = endpoint.expose(region, remote).map_err(|error| {
            tracing::warn!(session = %session.id, %lease, %error, "no key");
            Fault::NoKey
        })?;
        session.insert_key(lease, Key { tag, range, access, revoked: false, lingers: false });
        self.exposed.insert(lease, Granted { lease, tag: Some(tag.0), run, skip });
        Ok(())
    }

    pub(super) fn fence(&mut self, session: Option<Arc<Session>>, lease: LeaseId) {
        self.exposed.remove(&lease);
        let key = session.as_ref().and_then(|session| session.revoke_key(lease));
        let (Some(key), Some(endpoint)) = (key, session.and_then(|session| session.endpoint())) else {
            // No key was made, or its connection never stood: nothing can land.
            self.inputs.push_back(Input::Fenced { lease });
            return;
        };
        let started = sync::now();
        if endpoint.fence(key.tag, FENCE_SPIN).is_ok() {
            self.parts.counters.fence(sync::now().duration_since(started));
            self.inputs.push_back(Input::Fenced { lease });
            return;
        }
        let (driver, counters) = (self.driver.clone(), self.parts.counters.clone());
        let patience = self.parts.fence.saturating_sub(FENCE_SPIN);
        let wait = move || {
            let result = endpoint.fence(key.tag, patience);
            counters.fence(sync::now().duration_since(started));
            driver.send(Work::Input(match result {
                Ok(()) => Input::Fenced { lease },
                Err(error) => {
                    tracing::error!(%lease, %error, "fence not proven: its frames go into quarantine");
                    counters.unproven.fetch_add(1, Ordering::Relaxed);
                    Input::FenceUnproven { lease }
                }
            }));
        };
        if let Err(error) = sync::spawn("leasehold-fence", wait) {
            tracing::error!(%lease, %error, "no thread to wait for a fence: its frames go into quarantine");
            self.inputs.push_back(Input::FenceUnproven { lease });
        }
    }
}

/// The memory of a lease, as the fabric may use it.
fn region(arena: &Arc<Arena>, run: Run, skip: u16, length: u64) -> Region {
    let length = usize::try_from(length).expect("a lease fits in the arena");
    assert!(usize::from(skip) + length <= run.bytes() as usize, "a lease lies within its frames");
    // SAFETY: the run lies in the arena (asserted by `network`), which `owner` keeps mapped, and `skip + length` lies
    // within the run. The core gives a run to one owner at a time: until `Fenced` it touches the frames by no other
    // output, and the disk's view is another mapping, used for these frames only after `Fenced`.
    unsafe {
        let base = arena.network(run).add(usize::from(skip));
        Region::new(base, length, arena.clone()).summed(arena.sums().clone())
    }
}
