//! Tenants: whose sessions share what one may have, so that nobody is in need because of somebody else.
//!
//! What counts is what a tenant holds and what it waits for: an acquire counts from when it is taken in until its last lease is
//! over, so whoever has its share is refused at once and stands in nobody's line. Committed frames on their way to the disk count
//! no more: how long that takes is not the tenant's doing.

use crate::core::Core;
use crate::ids::{SessionId, TenantId};
use crate::input::Share;

/// One tenant that has sessions, or leases left of them.
///
/// Invariant: `leases` and `frames` are those of its leases, and of its requests that have none yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tenant {
    share: Share,
    sessions: usize,
    pub leases: usize,
    pub frames: u64,
}

/// The limits of a tenant, as errors name them.
const LEASES: &str = "the tenant's leases_max";
const FRAMES: &str = "the tenant's arena_max, in frames of 4 KiB,";

impl Core {
    pub(crate) fn session_shares(&mut self, session: SessionId, tenant: TenantId, share: Share) {
        let Some(owner) = self.sessions.get_mut(&session) else { return };
        if session == SessionId::LOCAL
            || owner.tenant.is_some()
            || owner.leases.len() + owner.requests.len() > 0
        {
            return;
        }
        owner.tenant = Some(tenant);
        let new = Tenant { share, sessions: 0, leases: 0, frames: 0 };
        let tenant = self.tenants.entry(tenant).or_insert(new);
        tenant.sessions += 1;
        tenant.share = share;
    }

    pub(crate) fn session_shares_no_more(&mut self, tenant: Option<TenantId>) {
        let Some(id) = tenant else { return };
        let tenant = self.tenants.get_mut(&id).expect("a tenant with a session is known");
        tenant.sessions -= 1;
        self.forget_tenant(id);
    }

    /// Whether the session's tenant may have so much more; else the limit.
    pub(crate) fn fits(
        &self,
        session: SessionId,
        leases: usize,
        frames: u64,
    ) -> Result<(), (&'static str, u64)> {
        let tenant = self.sessions.get(&session).and_then(|session| session.tenant);
        let Some(tenant) = tenant.map(|tenant| &self.tenants[&tenant]) else { return Ok(()) };
        let Share { leases_max, frames_max } = tenant.share;
        if tenant.leases + leases > leases_max {
            return Err((LEASES, leases_max as u64));
        }
        if tenant.frames + frames > u64::from(frames_max) {
            return Err((FRAMES, frames_max.into()));
        }
        Ok(())
    }

    /// From now on the tenant has so much more.
    pub(crate) fn charge(&mut self, tenant: Option<TenantId>, leases: usize, frames: u64) {
        let Some(tenant) = tenant.and_then(|tenant| self.tenants.get_mut(&tenant)) else { return };
        tenant.leases += leases;
        tenant.frames += frames;
    }

    /// The reverse of [`Core::charge`].
    pub(crate) fn refund(&mut self, tenant: Option<TenantId>, leases: usize, frames: u64) {
        let Some(id) = tenant else { return };
        let tenant = self.tenants.get_mut(&id).expect("a tenant that has something is known");
        tenant.leases -= leases;
        tenant.frames -= frames;
        self.forget_tenant(id);
    }

    fn forget_tenant(&mut self, id: TenantId) {
        let tenant = &self.tenants[&id];
        if tenant.sessions + tenant.leases == 0 {
            self.tenants.remove(&id);
        }
    }
}
