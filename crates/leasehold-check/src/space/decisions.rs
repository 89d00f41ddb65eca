//! The six decisions: every answer to each, and what it is called.

use crate::report::space::{Change, DECISIONS};
use leasehold_core::scheme::{
    Admission, AdmissionRules, Backing, DataPath, DirtyWhen, FsyncRule, Host, LayoutRule, Scheme, Writeback,
};

pub(super) const ADMISSIONS: [Admission; 4] =
    [Admission::Allow, Admission::Refuse, Admission::IfFaults, Admission::Lease];
pub(super) const WRITEBACKS: [Writeback; 6] = [
    Writeback::AsIs,
    Writeback::ProtectCpu,
    Writeback::Skip,
    Writeback::Refault,
    Writeback::Snapshot,
    Writeback::FencedAtCommit,
];
pub(super) const LAYOUTS: [LayoutRule; 6] = [
    LayoutRule::Ignore,
    LayoutRule::Wait,
    LayoutRule::Refuse,
    LayoutRule::Fence,
    LayoutRule::Break,
    LayoutRule::BreakThenKill,
];
pub(super) const PATHS: [DataPath; 3] = [DataPath::FileFrames, DataPath::Copied, DataPath::PrivateFrames];
pub(super) const FSYNCS: [FsyncRule; 5] = [
    FsyncRule::Acknowledge,
    FsyncRule::Wait,
    FsyncRule::FenceAndWrite,
    FsyncRule::Snapshot,
    FsyncRule::CommittedBytes,
];

fn dirty(bits: u8) -> DirtyWhen {
    let bit = |at: u8| bits >> at & 1 == 1;
    DirtyWhen { registered: bit(0), faulted: bit(1), released: bit(2), committed: bit(3), under_io: bit(4) }
}

/// Every answer to the decisions other than admission.
pub(super) fn answers_but_admission() -> impl Iterator<Item = Scheme> {
    let combinations = PATHS.into_iter().flat_map(|path| {
        WRITEBACKS.into_iter().flat_map(move |writeback| {
            LAYOUTS.into_iter().flat_map(move |layout| FSYNCS.map(|fsync| (path, writeback, layout, fsync)))
        })
    });
    combinations.flat_map(move |(data_path, writeback, layout, fsync)| {
        (0..32).map(move |bits| Scheme {
            name: "",
            admission: AdmissionRules::all(Admission::Refuse),
            writeback,
            layout,
            data_path,
            dirty: dirty(bits),
            fsync,
        })
    })
}

pub(super) fn admissions(cache: (Admission, Admission), dax: (Admission, Admission)) -> AdmissionRules {
    AdmissionRules { cache_read: cache.0, cache_write: cache.1, dax_read: dax.0, dax_write: dax.1 }
}

pub(super) fn host_in_words(host: Host) -> &'static str {
    match (host.backing, host.device_faults) {
        (Backing::PageCache, false) => "page cache",
        (Backing::PageCache, true) => "page cache, device faults",
        (Backing::Dax, false) => "DAX",
        (Backing::Dax, true) => "DAX, device faults",
    }
}

pub(super) fn path_in_words(path: DataPath) -> &'static str {
    match path {
        DataPath::FileFrames => "the file's own frames",
        DataPath::Copied => "other frames, copied",
        DataPath::PrivateFrames => "private frames, swapped in",
        DataPath::Elsewhere => "memory of its own",
    }
}

fn admission_in_words(admission: Admission) -> &'static str {
    match admission {
        Admission::Allow => "allow",
        Admission::Refuse => "refuse",
        Admission::IfFaults => "if the device faults",
        Admission::Lease => "lease",
    }
}

fn writeback_in_words(writeback: Writeback) -> &'static str {
    match writeback {
        Writeback::AsIs => "as it is",
        Writeback::ProtectCpu => "protect from the CPU, write",
        Writeback::Skip => "skip until released",
        Writeback::Refault => "fence, write, fault back",
        Writeback::Snapshot => "write a copy",
        Writeback::FencedAtCommit => "fenced at commit",
    }
}

fn layout_in_words(layout: LayoutRule) -> &'static str {
    match layout {
        LayoutRule::Ignore => "ignore the key",
        LayoutRule::Wait => "wait for ever",
        LayoutRule::Refuse => "refuse",
        LayoutRule::Fence => "fence at once",
        LayoutRule::Break => "break, grace, fence",
        LayoutRule::BreakThenKill => "break, grace, kill",
    }
}

fn fsync_in_words(fsync: FsyncRule) -> &'static str {
    match fsync {
        FsyncRule::Acknowledge => "as writeback, acknowledge",
        FsyncRule::Wait => "wait for the holders",
        FsyncRule::FenceAndWrite => "fence and write",
        FsyncRule::Snapshot => "write a copy",
        FsyncRule::CommittedBytes => "committed bytes only",
    }
}

/// The six answers, in words; what nobody asks for is a dash.
pub(super) fn in_words(scheme: &Scheme) -> [String; 6] {
    let AdmissionRules { cache_read, cache_write, dax_read, dax_write } = scheme.admission;
    let of =
        |read, write| format!("read: {}, write: {}", admission_in_words(read), admission_in_words(write));
    let (cache, dax) = (of(cache_read, cache_write), of(dax_read, dax_write));
    let admission = if cache == dax { cache } else { format!("page cache: {cache}; DAX: {dax}") };
    let in_file = scheme.data_path == DataPath::FileFrames;
    let or_dash = |text: &str| if in_file { text.to_owned() } else { "-".to_owned() };
    [
        admission,
        or_dash(writeback_in_words(scheme.writeback)),
        layout_in_words(scheme.layout).to_owned(),
        path_in_words(scheme.data_path).to_owned(),
        or_dash(&dirty_in_words(scheme.dirty)),
        fsync_in_words(scheme.fsync).to_owned(),
    ]
}

/// The marks of a block, in words.
fn dirty_in_words(dirty: DirtyWhen) -> String {
    let DirtyWhen { registered, faulted, released, committed, under_io } = dirty;
    let marks = [
        (registered, "registered"),
        (faulted, "faulted"),
        (released, "released"),
        (committed, "committed"),
        (under_io, "under I/O"),
    ];
    let set: Vec<&str> = marks.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
    if set.is_empty() { "never".to_owned() } else { set.join(", ") }
}

/// The designs that answer so many of the questions otherwise, the data path aside. Simple admissions come first.
pub(super) fn at_distance(scheme: &Scheme, distance: u32) -> Vec<Scheme> {
    let questions: [fn(Scheme) -> Vec<Scheme>; 5] = [
        |scheme| admission_rules().map(|admission| Scheme { admission, ..scheme }).collect(),
        |scheme| WRITEBACKS.map(|writeback| Scheme { writeback, ..scheme }).to_vec(),
        |scheme| LAYOUTS.map(|layout| Scheme { layout, ..scheme }).to_vec(),
        |scheme| (0..32).map(|bits| Scheme { dirty: dirty(bits), ..scheme }).collect(),
        |scheme| FSYNCS.map(|fsync| Scheme { fsync, ..scheme }).to_vec(),
    ];
    let asked = |which: u32| questions.iter().enumerate().filter(move |(at, _)| which >> at & 1 == 1);
    let otherwise = |which: u32| {
        asked(which).fold(vec![*scheme], |designs, (_, answers)| {
            let others = |design: Scheme| answers(design).into_iter().filter(move |other| *other != design);
            designs.into_iter().flat_map(others).collect()
        })
    };
    (0..32u32).filter(|which| which.count_ones() == distance).flat_map(otherwise).collect()
}

/// All, those that ask neither what backs the memory nor what the key is for before the others.
fn admission_rules() -> impl Iterator<Item = AdmissionRules> {
    let pairs = ADMISSIONS.into_iter().flat_map(|read| ADMISSIONS.map(|write| (read, write)));
    let all = pairs.clone().flat_map(move |cache| pairs.clone().map(move |dax| admissions(cache, dax)));
    ADMISSIONS.into_iter().map(AdmissionRules::all).chain(all)
}

/// One question, and its answers.
pub(super) struct Decision {
    pub name: &'static str,
    /// Each in words, and as what it changes in a design.
    pub answers: Vec<(&'static str, Answer)>,
}

type Answer = Box<dyn Fn(&mut Scheme)>;

impl Decision {
    fn new<T: Copy + 'static>(
        name: &'static str,
        all: &[T],
        in_words: fn(T) -> &'static str,
        set: fn(&mut Scheme, T),
    ) -> Decision {
        let answer = |&answer: &T| {
            (in_words(answer), Box::new(move |scheme: &mut Scheme| set(scheme, answer)) as Answer)
        };
        Decision { name, answers: all.iter().map(answer).collect() }
    }

    /// The design, with this answer.
    fn with(&self, answer: usize, scheme: &Scheme) -> Scheme {
        let mut scheme = *scheme;
        (self.answers[answer].1)(&mut scheme);
        scheme
    }

    /// Whether it is the design's answer.
    pub fn gives(&self, answer: usize, scheme: &Scheme) -> bool {
        self.with(answer, scheme) == *scheme
    }

    /// The design with every other answer.
    pub fn otherwise(&self, answer: usize, scheme: &Scheme) -> impl Iterator<Item = Scheme> {
        let others = (0..self.answers.len()).filter(move |&other| other != answer);
        others.map(move |other| self.with(other, scheme))
    }
}

/// Every decision but the data path; where DMA lands in the file's own frames, all of them are asked.
pub(super) fn all() -> Vec<Decision> {
    let write = |scheme: &mut Scheme, admission| {
        scheme.admission.cache_write = admission;
        scheme.admission.dax_write = admission;
    };
    let keys =
        &ADMISSIONS.into_iter().filter(|&admission| admission != Admission::Refuse).collect::<Vec<_>>();
    let mark =
        |names: fn(bool) -> &'static str, set| Decision::new("dirty tracking", &[true, false], names, set);
    vec![
        Decision::new("admission of writers", keys, admission_in_words, write),
        Decision::new("writeback", &WRITEBACKS, writeback_in_words, |scheme, rule| scheme.writeback = rule),
        Decision::new("layout change", &LAYOUTS, layout_in_words, |scheme, rule| scheme.layout = rule),
        mark(
            |on| if on { "registered" } else { "not registered" },
            |scheme, on| scheme.dirty.registered = on,
        ),
        mark(|on| if on { "faulted" } else { "not faulted" }, |scheme, on| scheme.dirty.faulted = on),
        mark(|on| if on { "released" } else { "not released" }, |scheme, on| scheme.dirty.released = on),
        mark(|on| if on { "committed" } else { "not committed" }, |scheme, on| scheme.dirty.committed = on),
        mark(|on| if on { "under I/O" } else { "not under I/O" }, |scheme, on| scheme.dirty.under_io = on),
        Decision::new("fsync", &FSYNCS, fsync_in_words, |scheme, rule| scheme.fsync = rule),
    ]
}

/// What the other design answers otherwise.
pub(super) fn changes(scheme: &Scheme, other: &Scheme) -> Vec<Change> {
    let answers = DECISIONS.into_iter().zip(in_words(scheme)).zip(in_words(other));
    let others = answers.filter(|((_, answer), other)| answer != other);
    others.map(|((decision, _), answer)| Change { decision, answer }).collect()
}
