//! The file's own frames, where the DMA of the older designs lands: pages of the page cache, or blocks of a DAX device.
//!
//! ```text
//! loaded --key made--> pinned --key released, or taken back--> cached --reclaim--> gone
//!                        \--layout change that does not ask--> orphan --key released--> gone
//! ```
//! A page is clean or dirty, as the scheme's dirty tracking says, and a writeback hands it to the disk from its own frame,
//! whether a key reaches it or not; whether anything keeps the peer from changing it meanwhile is the scheme's problem.
//! On DAX the page is the storage, and there is no writeback.
//!
//! None of this runs under `leasehold`; it is here so that the others' failures are shown with the same core.
//!
//! Sources: mm/gup.c, mm/page-writeback.c and fs/buffer.c of Linux, and the threads.

use crate::breaks::Outcome;
use crate::commit::whole_blocks;
use crate::core::Core;
use crate::frame::Owner;
use crate::ids::{FileId, FrameId, LeaseId, RequestId, SessionId, WriteId};
use crate::input::Want;
use crate::lease::{Ending, State};
use crate::output::{CommitError, Committed, Output, Reply, RevokeReason};
use crate::phase::PhaseOwner;
use crate::range::{BLOCK_BYTES, BlockRange, ByteRange, Run};
use crate::request::Kind;
use crate::scheme::{Admission, Backing, DataPath, LayoutRule, Writeback as Rule};
use crate::writeback::{WriteState, Writeback};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// One page. Its frame is its key in the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Page {
    pub file: FileId,
    pub block: u64,
    /// Those whose DMA can reach it.
    pub pins: BTreeSet<LeaseId>,
    pub loaded: bool,
    pub dirty: bool,
    /// The filesystem has its own data about it. Without them it must not become dirty.
    pub buffers: bool,
    /// Writeback and fsync do not find it, from a registration until a release (one mark for all keys).
    pub held: bool,
    /// The file has another block here by now, or none.
    pub orphan: bool,
    pub write: Option<WriteId>,
}

impl Core {
    /// Whether DMA lands in the file's own frames: none of this module is for any other scheme.
    pub(crate) fn lands_in_file(&self) -> bool {
        self.config.scheme.data_path == DataPath::FileFrames
    }

    /// What the scheme answers, on this host, to who wants a key.
    pub(crate) fn admission(&self, writes: bool) -> Admission {
        self.config.scheme.admission.of(self.config.host.backing, writes)
    }

    /// Whether the lease has a key that may place bytes in pages.
    fn is_writer(&self, id: LeaseId) -> bool {
        let lease = &self.leases[id];
        lease.access.writes() && lease.has_key()
    }

    /// Whether the key of the lease can be taken back: it is tied to a lease, or the device faults.
    pub(crate) fn is_fenceable(&self, id: LeaseId) -> bool {
        let lease = &self.leases[id];
        let admission = self.admission(lease.access.writes());
        lease.session == SessionId::LOCAL || matches!(admission, Admission::Lease | Admission::IfFaults)
    }

    /// Whether the key comes back by itself once it was taken.
    fn faults_back(&self, id: LeaseId) -> bool {
        let lease = &self.leases[id];
        lease.session != SessionId::LOCAL
            && self.config.host.device_faults
            // What a private frame holds is discarded with its key: there is nothing to come back to.
            && self.lands_in_file()
            && self.is_fenceable(id)
    }

    /// Whether a layout change has to see the lease go before it goes on.
    pub(crate) fn keeps_changes_out(&self, id: LeaseId) -> bool {
        let lease = &self.leases[id];
        if lease.session == SessionId::LOCAL {
            return true;
        }
        match self.config.scheme.layout {
            LayoutRule::Ignore => false,
            LayoutRule::Fence => lease.state != State::Parked && self.is_fenceable(id),
            LayoutRule::Wait | LayoutRule::Refuse | LayoutRule::Break | LayoutRule::BreakThenKill => true,
        }
    }

    /// The key is live. A layout change that does not ask may have come while it was made.
    pub(crate) fn take_if_wanted(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        if self.config.scheme.layout == LayoutRule::Fence
            && let Some(lease) = self.leases.get(id)
        {
            let changes: Vec<RequestId> = self.file(lease.file).changes.overlapping(lease.range).collect();
            if changes.into_iter().any(|change| self.leases_in_the_way(change).any(|other| other == id)) {
                self.take_key(id, out);
            }
        }
    }

    /// Takes the key from a lease for a layout change that does not ask.
    pub(crate) fn take_key(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        if self.leases[id].session == SessionId::LOCAL || !self.is_fenceable(id) {
            return;
        }
        if self.leases[id].state == State::Live && self.faults_back(id) {
            self.fence(id, Ending::Park, out);
        } else if self.leases[id].request.is_none() {
            self.revoke(id, RevokeReason::Taken, out);
        }
    }

    /// Pages for all that the acquire wants, or none.
    pub(crate) fn pages_for(&mut self, id: RequestId) -> Option<Vec<(LeaseId, Want, Run)>> {
        let Kind::Acquire(acquire) = &self.requests[&id].kind else { return None };
        let page_of = |core: &mut Core, want: Want| {
            let lease = core.next_lease();
            core.page_run(want.file, want.range.blocks()).map(|run| (lease, want, run))
        };
        acquire.wants.clone().into_iter().map(|want| page_of(self, want)).collect()
    }

    /// The pages of `blocks`, in one run, new ones if there are none; `None`: not now.
    pub(crate) fn page_run(&mut self, file: FileId, blocks: BlockRange) -> Option<Run> {
        let frames = u32::try_from(blocks.len()).expect("admitted, so no larger than the arena");
        let there: Vec<FrameId> = self.pages_of(file, blocks);
        if let Some(&first) = there.first() {
            let in_line = there.iter().zip(first.0..).all(|(frame, at)| frame.0 == at);
            if in_line && there.len() == frames as usize {
                return Some(Run { first, frames });
            }
            for frame in there {
                self.drop_page(frame);
            }
            if !self.pages_of(file, blocks).is_empty() {
                return None;
            }
        }
        let mut run = self.frames.allocate(frames, Owner::Page);
        if run.is_none() {
            self.drop_clean_pages();
            run = self.frames.allocate(frames, Owner::Page);
        }
        let run = run?;
        let mut rest = run;
        for block in blocks.start()..blocks.end() {
            if rest.frames > 1 {
                rest = self.frames.split(rest, Owner::Page, 1).1;
            }
            let frame = FrameId(run.first.0 + (block - blocks.start()) as u32);
            let page = Page {
                file,
                block,
                pins: BTreeSet::new(),
                loaded: self.config.host.backing == Backing::Dax,
                dirty: false,
                buffers: true,
                held: false,
                orphan: false,
                write: None,
            };
            self.pages.insert(frame, page);
            self.file_mut(file).pages.insert(block, frame);
        }
        Some(run)
    }

    fn pages_of(&self, file: FileId, blocks: BlockRange) -> Vec<FrameId> {
        let pages = self.files.get(&file).map(|file| file.pages.range(blocks.start()..blocks.end()));
        pages.into_iter().flatten().map(|(_, &frame)| frame).collect()
    }

    /// A lease in whose pages somebody who wants these blocks must not be: they are being loaded for it, or an entry of
    /// its own stands in their place.
    pub(crate) fn page_in_the_way(&self, file: FileId, blocks: BlockRange) -> Option<LeaseId> {
        let dirty = self.config.scheme.dirty;
        let taken = |page: &Page| !page.loaded || dirty.under_io && page.held;
        let mut pages = self.pages_of(file, blocks).into_iter().map(|frame| &self.pages[&frame]);
        pages.find_map(|page| if taken(page) { page.pins.first().copied() } else { None })
    }

    /// Frees a page that nobody has a claim on.
    fn drop_page(&mut self, frame: FrameId) {
        let page = &self.pages[&frame];
        let keeps = page.dirty && !page.orphan && self.config.host.backing == Backing::PageCache;
        if !page.pins.is_empty() || page.write.is_some() || keeps {
            return;
        }
        let page = self.pages.remove(&frame).expect("it was looked at just now");
        if !page.orphan {
            self.file_mut(page.file).pages.remove(&page.block);
        }
        self.free_frames(Run { first: frame, frames: 1 }, Owner::Page);
    }

    fn drop_clean_pages(&mut self) {
        for frame in self.pages.keys().copied().collect::<Vec<_>>() {
            self.drop_page(frame);
        }
    }

    /// Memory is short: pages that are clean and not pinned go, and the filesystem forgets its own data about those that
    /// are pinned. One that is not found there is left alone.
    pub(crate) fn reclaim(&mut self, file: FileId) {
        if self.config.host.backing == Backing::Dax {
            return;
        }
        for frame in self.pages_of(file, ByteRange::ALL.blocks()) {
            let hidden = self.config.scheme.dirty.under_io;
            if let Some(page) = self.pages.get_mut(&frame)
                && !page.dirty
                && page.write.is_none()
                && !(page.held && hidden)
            {
                page.buffers = page.pins.is_empty();
                self.drop_page(frame);
            }
        }
    }

    fn frames_of(&self, id: LeaseId) -> impl Iterator<Item = FrameId> + use<> {
        let run = self.leases[id].run;
        (run.first.0..run.first.0 + run.frames).map(FrameId)
    }

    /// The lease has pages: they are brought in if they are not there, once what would not have them stored into is over.
    pub(crate) fn pin_pages(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let (mut ready, scheme, lease) = (true, self.config.scheme, &self.leases[id]);
        // The entry in its place stands there before the device has the page.
        let hides = scheme.dirty.under_io && lease.access.writes() && lease.session != SessionId::LOCAL;
        for frame in self.frames_of(id) {
            let page = self.pages.get_mut(&frame).expect("a lease has pages");
            page.pins.insert(id);
            page.held |= hides && scheme.writeback == Rule::Skip;
            ready &= page.loaded;
        }
        if ready && (self.config.scheme.writeback == Rule::AsIs || self.config.host.backing == Backing::Dax) {
            return self.expose(id, out);
        }
        let lease = &self.leases[id];
        let (file, blocks) = (lease.file, lease.range.blocks());
        let phase = self.enter_phase(file, blocks, PhaseOwner::Load(id), None);
        self.lease_mut(id).state = State::Loading { phase, asked: false };
    }

    /// Whether there is anything to load, asked of a lease whose phase is held.
    pub(crate) fn has_all_pages(&self, id: LeaseId) -> bool {
        self.lands_in_file() && self.frames_of(id).all(|frame| self.pages[&frame].loaded)
    }

    pub(crate) fn pages_loaded(&mut self, id: LeaseId, well: bool) {
        if self.lands_in_file() {
            for frame in self.frames_of(id) {
                self.pages.get_mut(&frame).expect("pinned").loaded = well;
            }
        }
    }

    /// The key is live. A file is as long, from now on, as what is mapped of it.
    pub(crate) fn pages_registered(&mut self, id: LeaseId, again: bool) {
        let lease = &self.leases[id];
        if !self.lands_in_file() || !lease.access.writes() {
            return;
        }
        let (file, end, local) = (lease.file, lease.range.end(), lease.session == SessionId::LOCAL);
        let scheme = self.config.scheme;
        let state = self.file_mut(file);
        state.size = state.size.max(end);
        for frame in self.frames_of(id) {
            let page = self.pages.get_mut(&frame).expect("pinned");
            // The fault by which the key was made writable asked the filesystem.
            page.buffers = true;
            if !local {
                page.dirty |= scheme.dirty.faulted || scheme.dirty.registered && !again;
                page.held |= scheme.writeback == Rule::Skip;
            }
        }
    }

    /// A commit says no more than that the bytes are there; the key goes on.
    pub(crate) fn commit_in_place(&mut self, id: LeaseId, request: RequestId, out: &mut Vec<Output>) {
        if self.config.scheme.dirty.committed {
            self.dirty_pages(id);
        }
        let size = self.file(self.leases[id].file).size;
        self.reply(request, Reply::Commit(Ok(Committed { size })), out);
    }

    /// The pages become dirty by way of the filesystem, as by a fault: it is asked, and has its own data about them.
    fn dirty_pages(&mut self, id: LeaseId) {
        for frame in self.frames_of(id) {
            if let Some(page) = self.pages.get_mut(&frame).filter(|page| !page.orphan) {
                (page.dirty, page.buffers) = (true, true);
            }
        }
    }

    /// The lease is fenced and ends with a commit.
    pub(crate) fn commit_file_frames(&mut self, id: LeaseId, request: RequestId, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let (session, file, local) = (lease.session, lease.file, lease.session == SessionId::LOCAL);
        if local || self.config.scheme.dirty.committed {
            self.dirty_pages(id);
        }
        let removed = self.file(file).removed;
        let size = self.file(file).size;
        self.release_pages(id, out);
        let result = if removed { Err(CommitError::Removed(id)) } else { Ok(Committed { size }) };
        self.answer(request, Reply::Commit(result), out);
        out.push(Output::Forget { lease: id, session });
        self.lease_over(id, Outcome::Committed, out);
    }

    /// The lease is fenced and lets its pages go, dirty if the scheme says so.
    pub(crate) fn release_pages(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let lease = &self.leases[id];
        let marks =
            self.config.scheme.dirty.released && lease.access.writes() && lease.session != SessionId::LOCAL;
        for frame in self.frames_of(id) {
            let Some(page) = self.pages.get_mut(&frame).filter(|page| page.pins.contains(&id)) else {
                continue;
            };
            if marks && !page.orphan {
                // set_page_dirty; of a page without a mapping, the kernel ignores it.
                if !page.buffers && !page.dirty && self.config.host.backing == Backing::PageCache {
                    self.disowned = Some(id);
                }
                page.dirty = true;
            }
            page.held = false;
        }
        self.unpin(id, out);
    }

    pub(crate) fn unpin(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        for frame in self.frames_of(id) {
            let Some(page) = self.pages.get_mut(&frame) else { continue };
            if page.pins.remove(&id) {
                self.pins_changed(frame, out);
                if self.pages.get(&frame).is_some_and(|page| page.orphan) {
                    self.drop_page(frame);
                }
            }
        }
        self.work.frames = true;
    }

    /// The fence of a key that comes back is proven: what waited for it goes on.
    pub(crate) fn parked(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        self.lease_mut(id).state = State::Parked;
        self.unpin(id, out);
        let lease = self.lease_mut(id);
        let (file, watchers) = (lease.file, core::mem::take(&mut lease.watchers));
        self.work.requests.extend(watchers);
        let phases: Vec<_> = self.file(file).phases.keys().map(|&phase| (file, phase)).collect();
        self.work.phases.extend(phases);
        self.advance_syncs(file, out);
    }

    /// The device needs its key back.
    pub(crate) fn device_fault(&mut self, id: LeaseId, out: &mut Vec<Output>) {
        let Some(lease) = self.leases.get(id).filter(|lease| lease.state == State::Parked) else { return };
        let (file, range) = (lease.file, lease.range);
        let state = self.file(file);
        if state.changes.overlapping(range).next().is_some() {
            return;
        }
        if state.removed || state.size < range.end() {
            return self.fence(id, Ending::Revoke(RevokeReason::Taken), out);
        }
        if self.page_in_the_way(file, range.blocks()).is_some() {
            return;
        }
        if let Some(run) = self.page_run(file, range.blocks()) {
            self.lease_mut(id).run = run;
            self.pin_pages(id, out);
        }
    }

    /// Writes back what is dirty in `blocks`, by the scheme's rule or by another.
    pub(crate) fn write_pages(
        &mut self,
        file: FileId,
        blocks: BlockRange,
        rule: Option<Rule>,
        out: &mut Vec<Output>,
    ) {
        for frame in self.pages_of(file, blocks) {
            self.write_page(frame, rule.unwrap_or(self.config.scheme.writeback), out);
        }
    }

    fn write_page(&mut self, frame: FrameId, rule: Rule, out: &mut Vec<Output>) {
        let page = &self.pages[&frame];
        if !page.dirty || page.write.is_some() || page.held && rule == Rule::Skip {
            return;
        }
        if self.config.host.backing == Backing::Dax {
            // It is where it belongs.
            self.pages.get_mut(&frame).expect("just seen").dirty = false;
            return;
        }
        let writers: Vec<LeaseId> = page.pins.iter().copied().filter(|&id| self.is_writer(id)).collect();
        // Who stores by CPU has the page locked, and dirties it when it is done.
        if writers.iter().any(|&id| self.leases[id].session == SessionId::LOCAL) {
            return;
        }
        let (file, block) = (page.file, page.block);
        let start = block * BLOCK_BYTES;
        let range = ByteRange::new(start, start + BLOCK_BYTES).expect("a block");
        let id = WriteId(self.next_id());
        let run = Run { first: frame, frames: 1 };
        let mut write = Writeback::new(id, file, range, run, Some(frame));
        match rule {
            Rule::Refault if writers.iter().any(|&id| self.faults_back(id)) => {
                write.state = WriteState::Fencing;
                self.page_of_write(frame, id).dirty = true;
                self.insert_write(id, write, out);
                for writer in writers {
                    if self.faults_back(writer) && self.leases[writer].state == State::Live {
                        self.fence(writer, Ending::Park, out);
                    }
                }
            }
            Rule::Snapshot if !writers.is_empty() => {
                let Some(into) = self.frames.allocate(1, Owner::Write(id)) else { return };
                self.frames.mix_bytes(into);
                write.state = WriteState::Copying;
                write.run = into;
                self.page_of_write(frame, id).dirty = false;
                self.insert_write(id, write, out);
                out.push(Output::Capture { lease: snapshot_number(id), file, range, from: run, into });
            }
            _ => {
                self.page_of_write(frame, id).dirty = false;
                self.insert_write(id, write, out);
            }
        }
    }

    /// Somebody whose key keeps a dirty page from being written.
    pub(crate) fn dirty_under_key(&self, file: FileId) -> Option<LeaseId> {
        let pages = self.pages_of(file, ByteRange::ALL.blocks()).into_iter().map(|frame| &self.pages[&frame]);
        pages.filter(|page| page.dirty && page.write.is_none()).find_map(|page| page.pins.first().copied())
    }

    /// Whether a page of the file is dirty with bytes that the writeback under way may not have.
    pub(crate) fn dirtied_again(&self, file: FileId) -> bool {
        let begun = |write: WriteId| self.writes[&write].state != WriteState::Fencing;
        let pages = self.file(file).pages.values().map(|frame| &self.pages[frame]);
        self.lands_in_file() && pages.into_iter().any(|page| page.dirty && page.write.is_some_and(begun))
    }

    fn page_of_write(&mut self, frame: FrameId, write: WriteId) -> &mut Page {
        let page = self.pages.get_mut(&frame).expect("a page that is written is there");
        page.write = Some(write);
        page
    }

    /// A key less reaches the page: a writeback that waits for that begins.
    fn pins_changed(&mut self, frame: FrameId, out: &mut Vec<Output>) {
        let page = &self.pages[&frame];
        let Some(id) = page.write else { return };
        let reached = page.pins.iter().any(|&lease| self.is_writer(lease) && self.faults_back(lease));
        if self.writes[&id].state == WriteState::Fencing && !reached {
            self.pages.get_mut(&frame).expect("just seen").dirty = false;
            self.go_on_writing(id, WriteState::Recording, out);
        }
    }

    /// The copy of a page is made.
    pub(crate) fn snapshot_taken(&mut self, number: LeaseId, out: &mut Vec<Output>) {
        let id = WriteId(u64::MAX - number.0);
        if self.writes.get(&id).is_some_and(|write| write.state == WriteState::Copying) {
            self.go_on_writing(id, WriteState::Recording, out);
        }
    }

    /// The writeback of a page is over. A copy has its own frame.
    pub(crate) fn page_written(&mut self, id: WriteId, frame: FrameId, run: Run, well: bool) {
        if run.first != frame {
            self.free_frames(run, Owner::Write(id));
        }
        if let Some(page) = self.pages.get_mut(&frame) {
            page.write = None;
            page.dirty |= !well;
            if page.orphan {
                self.drop_page(frame);
            }
            self.work.frames = true;
        }
    }

    /// Takes the pages of whole blocks from the file. What is pinned stays with those who pin it. Of a block of which a part
    /// is taken, the page still has that part: it is brought in anew.
    pub(crate) fn take_pages(&mut self, file: FileId, range: ByteRange) {
        let whole = whole_blocks(range);
        for frame in self.pages_of(file, range.blocks()) {
            let block = self.pages[&frame].block;
            if whole.is_some_and(|whole| (whole.start()..whole.end()).contains(&block)) {
                self.file_mut(file).pages.remove(&block);
                self.pages.get_mut(&frame).expect("just seen").orphan = true;
            }
            self.drop_page(frame);
        }
    }

    /// The fence of the lease is not proven: its pages are nobody's until its endpoint is gone.
    pub(crate) fn quarantine_pages(&mut self, id: LeaseId) {
        let (session, frames) = (self.leases[id].session, self.frames_of(id));
        for frame in frames {
            let Some(page) = self.pages.get_mut(&frame) else { continue };
            page.pins.remove(&id);
            let (file, block, orphan) = (page.file, page.block, page.orphan);
            if page.pins.is_empty() && page.write.is_none() {
                self.pages.remove(&frame);
                if !orphan {
                    self.file_mut(file).pages.remove(&block);
                }
                self.frames.hand_over(
                    Run { first: frame, frames: 1 },
                    Owner::Page,
                    Owner::Quarantine(session),
                );
            }
        }
    }
}

/// What a copy of a page goes by, where the captures of leases go by theirs: numbers that no lease comes to.
fn snapshot_number(write: WriteId) -> LeaseId {
    LeaseId(u64::MAX - write.0)
}
