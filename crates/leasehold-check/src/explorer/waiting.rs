//! Who waits for ever: dead ends and fair cycles among the states in which somebody waits.
//!
//! Under weak fairness a strongly connected component can be walked for ever exactly if each label that is possible in all its states
//! is also taken by a step within it; and if a component cannot, no part of it can (the label stays possible in the part, and is
//! still not taken). So the largest components, of Tarjan's algorithm, decide. A component with a state in which no
//! label is possible at all is a dead end.

use super::visited::Number;
use std::collections::{BTreeMap, VecDeque};

/// The label of a step (see [`Explored::fair`](super::Explored::fair)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(u8);

impl Label {
    const FAVOUR: Self = Self(u8::MAX);

    pub(super) fn of(label: Option<u8>) -> Self {
        let Some(label) = label else { return Self::FAVOUR };
        assert!(label < 64, "labels of fairness are below 64; this one is {label}");
        Self(label)
    }

    fn bit(self) -> u64 {
        if self == Self::FAVOUR { 0 } else { 1 << self.0 }
    }
}

/// The steps out of one state after which somebody still waits.
pub(super) struct Steps<Target> {
    from: Number,
    waits: u32,
    /// The labels of all steps that are possible, those included that end the wait.
    possible: u64,
    to: Vec<(Target, Label)>,
}

impl<Target> Steps<Target> {
    pub(super) fn new(from: Number, waits: u32) -> Self {
        Self { from, waits, possible: 0, to: Vec::new() }
    }

    pub(super) fn is_possible(&mut self, label: Label) {
        self.possible |= label.bit();
    }

    pub(super) fn push(&mut self, target: Target, label: Label) {
        self.to.push((target, label));
    }
}

/// All steps among states in which somebody waits: 5 bytes each, and 24 for the state.
#[derive(Default)]
pub(super) struct Waiting {
    rows: Vec<Row>,
    targets: Vec<Number>,
    labels: Vec<Label>,
}

/// One state in which somebody waits, in the order of the numbers.
struct Row {
    possible: u64,
    /// Where its steps end; they begin where those of the row before end.
    steps_end: usize,
    state: Number,
    waits: u32,
}

/// Somebody waits for ever.
pub(super) struct Starved {
    pub(super) waiter: u32,
    pub(super) state: Number,
    /// The cycle, unless it is a dead end.
    pub(super) round: Option<Round>,
}

/// The steps of a cycle, each with the state that it leads to.
pub(super) type Round = Vec<(Label, Number)>;

/// A place in `rows`.
type RowId = u32;
/// Neither a row nor a component.
const NONE: u32 = u32::MAX;

impl Waiting {
    /// Adds the steps out of a state. They come in the order of the states.
    pub(super) fn add<Target>(&mut self, steps: Steps<Target>, number: impl Fn(Target) -> Number) {
        for (target, label) in steps.to {
            self.targets.push(number(target));
            self.labels.push(label);
        }
        let Steps { from: state, waits, possible, .. } = steps;
        self.rows.push(Row { possible, steps_end: self.targets.len(), state, waits });
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Row>()
            + self.targets.capacity() * size_of::<Number>()
            + self.labels.capacity() * size_of::<Label>()
    }

    /// For each who waits, the first dead end and the first cycle.
    pub(super) fn starved(&self, states: usize) -> Vec<Starved> {
        let anybody = self.rows.iter().fold(0, |all, row| all | row.waits);
        if anybody == 0 {
            return Vec::new();
        }
        let mut row_of = vec![NONE; states];
        for (id, row) in self.rows.iter().enumerate() {
            row_of[row.state as usize] = id as RowId;
        }
        let mut starved = Vec::new();
        for waiter in (0..u32::BITS).filter(|bit| anybody >> bit & 1 == 1) {
            let graph = Graph { waiting: self, row_of: &row_of, waiter };
            let component_of = graph.components();
            let [dead_end, cycle] = graph.first_of(&component_of);
            starved.extend(dead_end.map(|row| Starved { waiter, state: graph.row(row).state, round: None }));
            starved.extend(cycle.map(|row| Starved {
                waiter,
                state: graph.row(row).state,
                round: Some(graph.round(row, &component_of)),
            }));
        }
        starved
    }
}

/// The states in which one of them waits, and the steps between.
struct Graph<'a> {
    waiting: &'a Waiting,
    row_of: &'a [RowId],
    waiter: u32,
}

/// What is known of a component.
#[derive(Clone, Copy)]
struct Component {
    /// Its first row.
    first: RowId,
    /// Its first row where nothing but favours is possible.
    dead_end: RowId,
    /// The labels that are possible in all its states.
    possible: u64,
    /// The labels of the steps within it.
    taken: u64,
}

impl Graph<'_> {
    fn row(&self, row: RowId) -> &Row {
        &self.waiting.rows[row as usize]
    }

    fn rows(&self) -> impl Iterator<Item = RowId> {
        (0..self.waiting.rows.len() as RowId).filter(|&row| self.row(row).waits >> self.waiter & 1 == 1)
    }

    fn steps_begin(&self, row: RowId) -> usize {
        row.checked_sub(1).map_or(0, |before| self.row(before).steps_end)
    }

    /// Where a step leads, if he still waits there; states that were not expanded are not looked at.
    fn target(&self, step: usize) -> Option<RowId> {
        let row = self.row_of[self.waiting.targets[step] as usize];
        (row != NONE && self.row(row).waits >> self.waiter & 1 == 1).then_some(row)
    }

    fn steps(&self, row: RowId) -> impl Iterator<Item = (Label, RowId)> {
        let steps = self.steps_begin(row)..self.row(row).steps_end;
        steps.filter_map(|step| Some((self.waiting.labels[step], self.target(step)?)))
    }

    /// The strongly connected component of each row. (Tarjan, "Depth-first search and linear graph algorithms", 1972;
    /// without recursion, as a component may be as deep as there are states.)
    fn components(&self) -> Vec<u32> {
        let rows = self.waiting.rows.len();
        let (mut component_of, mut components) = (vec![NONE; rows], 0);
        let (mut order, mut low) = (vec![NONE; rows], vec![NONE; rows]);
        let (mut entered, mut open, mut calls) = (0, Vec::new(), Vec::new());
        for root in self.rows() {
            if order[root as usize] == NONE {
                calls.push((root, self.steps_begin(root)));
            }
            while let Some((row, step)) = calls.last_mut() {
                let (at, is_new) = (*row as usize, order[*row as usize] == NONE);
                if is_new {
                    (order[at], low[at]) = (entered, entered);
                    entered += 1;
                    open.push(*row);
                }
                if *step < self.row(*row).steps_end {
                    let target = self.target(*step);
                    *step += 1;
                    match target.map(|target| (target, target as usize)) {
                        Some((target, to)) if order[to] == NONE => {
                            calls.push((target, self.steps_begin(target)))
                        }
                        Some((_, to)) if component_of[to] == NONE => low[at] = low[at].min(order[to]),
                        _ => {}
                    }
                    continue;
                }
                calls.pop();
                if low[at] == order[at] {
                    while let Some(member) = open.pop_if(|_| component_of[at] == NONE) {
                        component_of[member as usize] = components;
                    }
                    components += 1;
                }
                if let Some((parent, _)) = calls.last() {
                    low[*parent as usize] = low[*parent as usize].min(low[at]);
                }
            }
        }
        component_of
    }

    /// The first row of a dead end, and the first of a cycle.
    fn first_of(&self, component_of: &[u32]) -> [Option<RowId>; 2] {
        let unseen = Component { first: NONE, dead_end: NONE, possible: u64::MAX, taken: 0 };
        let mut components = Vec::new();
        for row in self.rows() {
            let mine = component_of[row as usize];
            if components.len() <= mine as usize {
                components.resize(mine as usize + 1, unseen);
            }
            let component = &mut components[mine as usize];
            let possible = self.row(row).possible;
            component.first = component.first.min(row);
            component.possible &= possible;
            if possible == 0 {
                component.dead_end = component.dead_end.min(row);
            }
            for (label, _) in self.steps(row).filter(|(_, to)| component_of[*to as usize] == mine) {
                component.taken |= label.bit();
            }
        }
        let dead_end = components.iter().map(|component| component.dead_end).min();
        // One state without a step to itself is none of the cycles: what is possible in it is not taken within it.
        let cycles = components
            .iter()
            .filter(|component| component.dead_end == NONE && component.possible & !component.taken == 0);
        [dead_end.filter(|&row| row != NONE), cycles.map(|component| component.first).min()]
    }

    /// A fair way from a row back to it, within its component: whatever is possible all the way is taken.
    fn round(&self, start: RowId, component_of: &[u32]) -> Round {
        let (mut round, mut at) = (Vec::new(), start);
        let (mut possible, mut taken) = (self.row(start).possible, 0);
        while possible & !taken != 0 {
            let missing = 1 << (possible & !taken).trailing_zeros();
            let does =
                |(label, to): (Label, RowId)| label.bit() == missing || self.row(to).possible & missing == 0;
            for (label, to) in self.shortest(at, component_of, does) {
                round.push((label, to));
                taken |= label.bit();
                possible &= self.row(to).possible;
                at = to;
            }
        }
        if at != start {
            round.extend(self.shortest(at, component_of, |(_, to)| to == start));
        }
        round.into_iter().map(|(label, row)| (label, self.row(row).state)).collect()
    }

    /// The shortest way from a row, within its component, whose last step is one of those looked for.
    fn shortest(
        &self,
        from: RowId,
        component_of: &[u32],
        is_last: impl Fn((Label, RowId)) -> bool,
    ) -> Vec<(Label, RowId)> {
        let mut reached: BTreeMap<RowId, (RowId, Label)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(row) = queue.pop_front() {
            for step in self.steps(row) {
                let (label, to) = step;
                if component_of[to as usize] != component_of[from as usize] {
                    continue;
                }
                if is_last(step) {
                    let mut way = vec![step];
                    let mut at = row;
                    while at != from {
                        let (before, label) = reached[&at];
                        way.push((label, at));
                        at = before;
                    }
                    way.reverse();
                    return way;
                }
                if to != from && !reached.contains_key(&to) {
                    reached.insert(to, (row, label));
                    queue.push_back(to);
                }
            }
        }
        unreachable!("in a strongly connected component every step can be reached from every state")
    }
}
