//! Which designs are the same design: what a host, or a scenario, can see of the six decisions.
//!
//! Two designs that differ only in an answer that nobody asks for behave alike in every interleaving. So each is
//! replaced by one that stands for all of its kind, and only that one is explored:
//!
//! - A host has one backing: of the four admissions, two are asked. A device that cannot fault turns "if it faults"
//!   into a refusal, and "let the device fault it back" into writing under the key.
//! - Outside the file's own frames there is no page to write back or to mark dirty: neither decision is asked, of the
//!   answers to fsync only "wait" is another one, and the backing does not matter.
//! - On DAX there is no writeback. That a page is skipped matters by its entry only, or to an fsync that looks for it.
//! - A "page under I/O" entry stands only where writeback skips. What a fault marks dirty, a registration does, unless
//!   a key is taken and comes back.
//! - A key that nothing ever takes is the same whether it could be taken or not.
//! - "Fence at once", if no key can be fenced, is "ignore". "Break" is not "wait" then: the holder is told.
//!
//! A test explores both, the design and the one that stands for it.

use crate::scenario::{Act, Scenario};
use leasehold_core::scheme::{
    Admission, AdmissionRules, Backing, DataPath, DirtyWhen, FsyncRule, Host, LayoutRule, Scheme, Writeback,
};

/// What is asked of a design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// A peer wants a key for reading.
    pub reads: bool,
    /// A peer wants a key for writing.
    pub writes: bool,
    /// A program on the host writes.
    pub local: bool,
    /// A layout changes.
    pub changes: bool,
    /// Somebody syncs.
    pub syncs: bool,
}

impl Sight {
    /// Everything.
    pub const ALL: Sight = Sight { reads: true, writes: true, local: true, changes: true, syncs: true };

    /// What a scenario asks.
    #[must_use]
    pub fn of(scenario: &Scenario) -> Sight {
        let act = |wanted: fn(&Act) -> bool| scenario.acts.iter().any(wanted);
        Sight {
            reads: scenario.slots.iter().any(|slot| !slot.access.writes()),
            writes: scenario.slots.iter().any(|slot| slot.access.writes()),
            local: act(|act| matches!(act, Act::LocalWrite(_))),
            changes: act(|act| matches!(act, Act::Change(_))),
            syncs: act(|act| *act == Act::Sync),
        }
    }
}

/// The design, and the host, that stand for all of the same kind.
#[must_use]
pub fn seen(scheme: &Scheme, host: Host, sight: Sight) -> (Scheme, Host) {
    let mut kind = Kind { scheme: *scheme, host, sight, read: Admission::Refuse, write: Admission::Refuse };
    kind.scheme.name = "";
    kind.look_at_admission();
    kind.look_at_layout();
    if !sight.syncs {
        kind.scheme.fsync = FsyncRule::Acknowledge;
    }
    match (scheme.data_path, host.backing) {
        (DataPath::Copied | DataPath::PrivateFrames | DataPath::Elsewhere, _) => kind.is_outside_the_file(),
        (DataPath::FileFrames, Backing::Dax) => kind.is_on_dax(),
        (DataPath::FileFrames, Backing::PageCache) => kind.is_in_the_page_cache(),
    }
    kind.look_at_faults();
    kind.stand_in()
}

const NEVER: DirtyWhen =
    DirtyWhen { registered: false, faulted: false, released: false, committed: false, under_io: false };

struct Kind {
    scheme: Scheme,
    host: Host,
    sight: Sight,
    read: Admission,
    write: Admission,
}

impl Kind {
    fn look_at_admission(&mut self) {
        let there = |admission| match admission {
            Admission::IfFaults if !self.host.device_faults => Admission::Refuse,
            other => other,
        };
        let of = |writes| there(self.scheme.admission.of(self.host.backing, writes));
        if self.sight.reads {
            self.read = of(false);
        }
        // A local writer waits for readers if writers need a lease.
        if self.sight.writes || self.sight.local && of(true) == Admission::Lease {
            self.write = of(true);
        }
    }

    fn look_at_layout(&mut self) {
        let fenceable = |admission| matches!(admission, Admission::Lease | Admission::IfFaults);
        let kills = self.scheme.layout == LayoutRule::BreakThenKill && self.sight.local;
        let nothing_to_fence =
            self.scheme.layout == LayoutRule::Fence && !fenceable(self.read) && !fenceable(self.write);
        if !self.sight.changes && !kills || nothing_to_fence {
            self.scheme.layout = LayoutRule::Ignore;
        }
    }

    fn is_outside_the_file(&mut self) {
        self.scheme.writeback = Writeback::FencedAtCommit;
        self.scheme.dirty = NEVER;
        self.host.backing = Backing::PageCache;
        if self.scheme.fsync != FsyncRule::Wait {
            self.scheme.fsync = FsyncRule::Acknowledge;
        }
    }

    fn is_on_dax(&mut self) {
        let scheme = &mut self.scheme;
        let DirtyWhen { registered, faulted, committed, under_io, .. } = scheme.dirty;
        let looked_for = scheme.fsync == FsyncRule::CommittedBytes && (registered || faulted || committed);
        let (registered, committed) = (looked_for && (registered || faulted), looked_for && committed);
        match scheme.writeback {
            Writeback::Skip if under_io || looked_for => {
                scheme.dirty = DirtyWhen { registered, committed, under_io, ..NEVER };
            }
            Writeback::FencedAtCommit => scheme.dirty = NEVER,
            _ => (scheme.writeback, scheme.dirty) = (Writeback::AsIs, NEVER),
        }
        match scheme.fsync {
            FsyncRule::Wait => {}
            FsyncRule::CommittedBytes if looked_for && scheme.writeback == Writeback::Skip => {}
            _ => scheme.fsync = FsyncRule::Acknowledge,
        }
    }

    fn is_in_the_page_cache(&mut self) {
        let writers = self.sight.writes && self.write != Admission::Refuse;
        let comes_back = writers && self.comes_back(self.write);
        let parks = comes_back && self.is_taken();
        let scheme = &mut self.scheme;
        if !writers {
            let any = scheme.writeback == Writeback::AsIs;
            scheme.writeback = if any { Writeback::AsIs } else { Writeback::ProtectCpu };
            scheme.dirty = NEVER;
            if matches!(scheme.fsync, FsyncRule::FenceAndWrite | FsyncRule::Snapshot) {
                scheme.fsync = FsyncRule::Acknowledge;
            }
            return;
        }
        if scheme.writeback == Writeback::Refault && !comes_back {
            scheme.writeback = Writeback::ProtectCpu;
        }
        let same = match scheme.fsync {
            FsyncRule::FenceAndWrite if comes_back => scheme.writeback == Writeback::Refault,
            FsyncRule::FenceAndWrite => !matches!(scheme.writeback, Writeback::Snapshot | Writeback::Skip),
            FsyncRule::Snapshot => scheme.writeback == Writeback::Snapshot,
            _ => false,
        };
        if same {
            scheme.fsync = FsyncRule::Acknowledge;
        }
        let dirty = &mut scheme.dirty;
        dirty.under_io &= scheme.writeback == Writeback::Skip;
        if parks {
            dirty.registered &= !dirty.faulted;
        } else {
            (dirty.registered, dirty.faulted) = (dirty.registered || dirty.faulted, false);
        }
    }

    /// Whether such a key comes back by itself.
    fn comes_back(&self, admission: Admission) -> bool {
        self.scheme.data_path == DataPath::FileFrames
            && self.host.device_faults
            && matches!(admission, Admission::Lease | Admission::IfFaults)
    }

    /// Whether anything takes a writer's key, so that it has to come back.
    fn is_taken(&self) -> bool {
        let written_back = self.host.backing == Backing::PageCache
            && (self.scheme.writeback == Writeback::Refault || self.scheme.fsync == FsyncRule::FenceAndWrite);
        self.scheme.layout == LayoutRule::Fence || written_back
    }

    fn look_at_faults(&mut self) {
        let fenced = self.scheme.layout == LayoutRule::Fence;
        let revoked = fenced || self.scheme.layout == LayoutRule::Break;
        if self.read == Admission::IfFaults && !revoked {
            self.read = Admission::Allow;
        }
        let taken = self.is_taken() && self.scheme.data_path == DataPath::FileFrames || fenced;
        if self.write == Admission::IfFaults && !taken && !revoked {
            self.write = Admission::Allow;
        }
        let faults = [self.read, self.write].contains(&Admission::IfFaults)
            || fenced && self.comes_back(self.read)
            || taken && self.comes_back(self.write);
        self.host.device_faults = faults;
    }

    fn stand_in(mut self) -> (Scheme, Host) {
        let (read, write) = (self.read, self.write);
        self.scheme.admission =
            AdmissionRules { cache_read: read, cache_write: write, dax_read: read, dax_write: write };
        (self.scheme, self.host)
    }
}
