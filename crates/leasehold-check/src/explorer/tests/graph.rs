//! Small graphs at random, and the slow but plain way to what the explorer finds in them.

use super::*;
use std::collections::BTreeMap;

/// A model whose states and steps are listed.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub(super) initial: Vec<usize>,
    pub(super) steps: Vec<Vec<Step>>,
    /// Who waits, of two.
    pub(super) waits: Vec<u32>,
    /// States that are not looked at.
    pub(super) outside: Vec<bool>,
    /// 1 is bad, 2 is good.
    pub(super) marks: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// None: it changes nothing.
    to: Option<usize>,
    label: Option<u8>,
}

pub(super) fn graphs() -> impl Strategy<Value = Graph> {
    (1_usize..=6).prop_flat_map(|states| {
        let step = (prop::option::weighted(0.9, 0..states), prop::option::weighted(0.7, 0_u8..3));
        let step = step.prop_map(|(to, label)| Step { to, label });
        (
            prop::collection::vec(0..states, 1..=2),
            prop::collection::vec(prop::collection::vec(step, 0..=3), states),
            prop::collection::vec(0_u32..4, states),
            prop::collection::vec(prop::bool::weighted(0.1), states),
            prop::collection::vec(prop_oneof![5 => Just(0), 1 => Just(1), 1 => Just(2)], states),
        )
            .prop_map(|(initial, steps, waits, outside, marks)| Graph {
                initial,
                steps,
                waits,
                outside,
                marks,
            })
    })
}

impl Model for Graph {
    type State = usize;
    type Action = usize;

    fn init_states(&self) -> Vec<usize> {
        self.initial.clone()
    }

    fn actions(&self, state: &usize, actions: &mut Vec<usize>) {
        actions.extend(0..self.steps[*state].len());
    }

    fn next_state(&self, state: &usize, action: usize) -> Option<usize> {
        self.steps[*state][action].to
    }

    fn within_boundary(&self, state: &usize) -> bool {
        !self.outside[*state]
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is bad", |graph: &Self, state| graph.marks[*state] & 1 == 0),
            Property::sometimes("something is good", |graph: &Self, state| graph.marks[*state] & 2 != 0),
        ]
    }
}

impl Explored for Graph {
    fn waits(&self, state: &usize) -> u32 {
        self.waits[*state]
    }

    fn fair(&self, state: &usize, action: &usize) -> Option<u8> {
        self.steps[*state][*action].label
    }
}

impl Graph {
    fn next(&self, state: usize) -> impl Iterator<Item = (usize, Option<u8>)> {
        let steps = self.steps[state].iter().filter_map(|step| Some((step.to?, step.label)));
        steps.filter(|(to, _)| !self.outside[*to])
    }

    fn starts(&self) -> impl Iterator<Item = usize> {
        self.initial.iter().copied().filter(|&state| !self.outside[state])
    }

    pub(super) fn reachable(&self) -> BTreeSet<usize> {
        let mut reachable = BTreeSet::from_iter(self.starts());
        for _ in &self.steps {
            let next = reachable.iter().flat_map(|&state| self.next(state).map(|(to, _)| to));
            reachable = next.chain(reachable.iter().copied()).collect();
        }
        reachable
    }

    /// All paths of 0 steps, then all of one, and so on, in the order of the actions.
    pub(super) fn first_path_to(&self, is_goal: impl Fn(usize) -> bool) -> Option<Vec<usize>> {
        let mut paths: Vec<Vec<usize>> = self.starts().map(|state| vec![state]).collect();
        for _ in &self.steps {
            if let Some(path) = paths.iter().find(|path| is_goal(path[path.len() - 1])) {
                return Some(path.clone());
            }
            let longer = |path: Vec<usize>| {
                self.next(path[path.len() - 1]).map(|(to, _)| [&path[..], &[to]].concat()).collect::<Vec<_>>()
            };
            paths = paths.into_iter().flat_map(longer).collect();
        }
        None
    }

    fn possible(&self, state: usize) -> BTreeSet<u8> {
        let steps = self.steps[state].iter().filter(|step| step.to.is_some());
        steps.filter_map(|step| step.label).collect()
    }

    pub(super) fn dead_ends(&self, waiter: u32) -> BTreeSet<usize> {
        let waits = |state: &usize| self.waits[*state] >> waiter & 1 == 1;
        self.reachable().into_iter().filter(waits).filter(|&state| self.possible(state).is_empty()).collect()
    }

    /// Every set of states in which he waits, that a run can visit again and again, all of it, without being unfair.
    pub(super) fn fair_sets(&self, waiter: u32) -> Vec<BTreeSet<usize>> {
        let waits: Vec<usize> =
            self.reachable().into_iter().filter(|&state| self.waits[state] >> waiter & 1 == 1).collect();
        let sets = (1..1_u32 << waits.len()).map(|chosen| {
            let chosen = waits.iter().enumerate().filter(|(place, _)| chosen >> place & 1 == 1);
            chosen.map(|(_, &state)| state).collect::<BTreeSet<usize>>()
        });
        sets.filter(|set| self.is_connected(set) && self.is_fair(set, &self.labels_within(set))).collect()
    }

    fn is_connected(&self, set: &BTreeSet<usize>) -> bool {
        let reaches: BTreeMap<usize, BTreeSet<usize>> = set
            .iter()
            .map(|&from| {
                let mut reached = BTreeSet::new();
                let mut fresh = vec![from];
                while let Some(state) = fresh.pop() {
                    fresh.extend(
                        self.next(state)
                            .map(|(to, _)| to)
                            .filter(|&to| set.contains(&to) && reached.insert(to)),
                    );
                }
                (from, reached)
            })
            .collect();
        reaches.values().all(|reached| reached == set)
    }

    fn labels_within(&self, set: &BTreeSet<usize>) -> BTreeSet<u8> {
        let steps = set.iter().flat_map(|&state| self.next(state));
        steps.filter(|(to, _)| set.contains(to)).filter_map(|(_, label)| label).collect()
    }

    fn is_fair(&self, set: &BTreeSet<usize>, taken: &BTreeSet<u8>) -> bool {
        let always = (0..3).filter(|label| set.iter().all(|&state| self.possible(state).contains(label)));
        always.into_iter().all(|label| taken.contains(&label))
    }

    pub(super) fn is_fair_cycle(&self, waiter: u32, start: usize, actions: &[usize]) -> bool {
        let (mut state, mut set, mut taken) = (start, BTreeSet::new(), BTreeSet::new());
        for &action in actions {
            let Step { to: Some(to), label } = self.steps[state][action] else { return false };
            taken.extend(label);
            set.insert(to);
            state = to;
        }
        let waits = set.iter().all(|&state| self.waits[state] >> waiter & 1 == 1);
        !actions.is_empty() && state == start && waits && self.is_fair(&set, &taken)
    }
}
