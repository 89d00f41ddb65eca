//! The search itself: level by level, in blocks.

use super::{
    Bounds, Ending, Exploration, Explored, Finding, Starvation,
    visited::{NOBODY, Number, Visited, fingerprint},
    waiting::{Label, Round, Steps, Waiting},
};
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use stateright::{Expectation, Path, Property};
use std::{mem, time::Instant};

/// States that one thread expands at a time.
const CHUNK: usize = 256;
/// Chunks that are expanded before what is new in them is taken in. It bounds the states that are found twice meanwhile.
const BLOCK: usize = 16;

pub(super) struct Search<'a, M: Explored> {
    model: &'a M,
    bounds: &'a Bounds,
    properties: Vec<Property<M>>,
    /// The first state that shows each property's violation or example.
    found: Vec<Option<Number>>,
    /// A bit for each property of which the first is enough.
    enough: u64,
    visited: Visited<M::State>,
    waiting: Waiting,
    /// What was found in this level, in chunks.
    next: Vec<Chunk<M::State>>,
    transitions: u64,
}

/// States of one level, in order.
struct Chunk<State> {
    first: Number,
    states: Vec<State>,
}

/// What one chunk leads to.
struct Expansion<State> {
    candidates: Vec<Candidate<State>>,
    /// The steps out of the states in which somebody waits.
    steps: Vec<Steps<Target>>,
    transitions: u64,
}

/// A state that was not known when it was found.
struct Candidate<State> {
    state: State,
    fingerprint: u64,
    from: (Number, u16),
    /// A bit for each property whose violation or example this is.
    shows: u64,
}

/// Where a step leads.
#[derive(Clone, Copy)]
enum Target {
    Known(Number),
    Candidate(usize),
}

/// A bound was reached.
struct Cut;

impl<'a, M: Explored> Search<'a, M> {
    pub(super) fn new(model: &'a M, bounds: &'a Bounds) -> Self {
        let properties = model.properties();
        assert!(properties.len() <= 64, "at most 64 properties; the model has {}", properties.len());
        for property in &properties {
            let name = property.name;
            let eventually = property.expectation == Expectation::Eventually;
            assert!(
                !eventually,
                "property {name:?}: say who waits (`Explored::waits`) instead of `eventually`"
            );
        }
        let enough =
            properties.iter().enumerate().filter(|(_, property)| bounds.enough.contains(&property.name));
        let enough = enough.map(|(place, _)| 1 << place).sum();
        Self {
            model,
            bounds,
            enough,
            found: vec![None; properties.len()],
            properties,
            visited: Visited::new(bounds.exact),
            waiting: Waiting::default(),
            next: Vec::new(),
            transitions: 0,
        }
    }

    pub(super) fn run(mut self) -> Exploration<M::State, M::Action> {
        let start = Instant::now();
        let pool = (self.bounds.threads > 1).then(|| {
            let pool = ThreadPoolBuilder::new().num_threads(self.bounds.threads).build();
            pool.expect("threads can be started")
        });
        let (mut depth, mut frontier_bytes) = (0, 0);
        let mut complete = self.begin().is_ok();
        while complete && !self.next.is_empty() {
            let level = mem::take(&mut self.next);
            let level_bytes = self.level_bytes(&level);
            complete = self.bounds.depth_max.is_none_or(|max| depth < max)
                && self.expand_level(level, level_bytes, pool.as_ref(), start).is_ok();
            frontier_bytes = frontier_bytes.max(level_bytes + self.level_bytes(&self.next));
            depth += u32::from(!self.next.is_empty());
        }
        let states = self.visited.len() as u64;
        Exploration {
            starved: self.starved(),
            states,
            transitions: self.transitions,
            depth,
            complete,
            visited_bytes: self.visited.bytes() as u64,
            waiting_bytes: self.waiting.bytes() as u64,
            frontier_bytes,
            collision: if self.bounds.exact { 0.0 } else { collision(states) },
            findings: self.findings(),
            elapsed: start.elapsed(),
        }
    }

    /// Takes in the initial states.
    fn begin(&mut self) -> Result<(), Cut> {
        let states = self.model.init_states();
        assert!(states.len() <= usize::from(u16::MAX) + 1, "at most 65,536 initial states");
        for (place, state) in states.into_iter().enumerate() {
            if self.model.within_boundary(&state) {
                let fingerprint = fingerprint(&*self.model.representative(&state));
                let shows = self.shows(&state);
                self.take_in(Candidate { state, fingerprint, from: (NOBODY, place as u16), shows })?;
            }
        }
        Ok(())
    }

    fn expand_level(
        &mut self,
        level: Vec<Chunk<M::State>>,
        level_bytes: u64,
        pool: Option<&ThreadPool>,
        start: Instant,
    ) -> Result<(), Cut> {
        let mut chunks = level.into_iter();
        loop {
            let block: Vec<_> = chunks.by_ref().take(BLOCK).collect();
            let expanded = match pool {
                _ if block.is_empty() => return Ok(()),
                Some(pool) if block.len() > 1 => {
                    pool.install(|| block.into_par_iter().map(|chunk| self.expand(chunk)).collect())
                }
                _ => block.into_iter().map(|chunk| self.expand(chunk)).collect::<Vec<_>>(),
            };
            for expansion in expanded {
                self.take_in_all(expansion)?;
            }
            if level_bytes + self.level_bytes(&self.next) > self.bounds.frontier_bytes_max {
                return Err(Cut);
            }
            if self.bounds.elapsed_max.is_some_and(|max| start.elapsed() > max) {
                return Err(Cut);
            }
        }
    }

    /// Finds where the states of a chunk lead. Reads what is known; changes nothing.
    fn expand(&self, chunk: Chunk<M::State>) -> Expansion<M::State> {
        let model = self.model;
        let mut expansion = Expansion { candidates: Vec::new(), steps: Vec::new(), transitions: 0 };
        let mut actions = Vec::new();
        for (number, state) in (chunk.first..).zip(&chunk.states) {
            let waits = model.waits(state);
            let mut steps = Steps::new(number, waits);
            model.actions(state, &mut actions);
            assert!(actions.len() <= usize::from(u16::MAX) + 1, "at most 65,536 actions in a state");
            for (place, action) in actions.drain(..).enumerate() {
                let label = (waits != 0).then(|| Label::of(model.fair(state, &action)));
                let Some(next) = model.next_state(state, action) else { continue };
                if let Some(label) = label {
                    steps.is_possible(label);
                }
                if !model.within_boundary(&next) {
                    continue;
                }
                expansion.transitions += 1;
                let stays = label.filter(|_| waits & model.waits(&next) != 0);
                let representative = model.representative(&next);
                let fingerprint = fingerprint(&*representative);
                let known = self.visited.find(&representative, fingerprint);
                let target = known.map_or(Target::Candidate(expansion.candidates.len()), Target::Known);
                if let Some(label) = stays {
                    steps.push(target, label);
                }
                drop(representative);
                if known.is_none() {
                    let shows = self.shows(&next);
                    let from = (number, place as u16);
                    expansion.candidates.push(Candidate { state: next, fingerprint, from, shows });
                }
            }
            if waits != 0 {
                expansion.steps.push(steps);
            }
        }
        expansion
    }

    /// Which properties that have shown nothing yet a state shows something of.
    fn shows(&self, state: &M::State) -> u64 {
        let mut shows = 0;
        for (place, property) in self.properties.iter().enumerate() {
            let wanted = property.expectation == Expectation::Sometimes;
            if self.found[place].is_none() && (property.condition)(self.model, state) == wanted {
                shows |= 1 << place;
            }
        }
        shows
    }

    fn take_in_all(&mut self, expansion: Expansion<M::State>) -> Result<(), Cut> {
        let mut numbers = Vec::with_capacity(expansion.candidates.len());
        for candidate in expansion.candidates {
            numbers.push(self.take_in(candidate)?);
        }
        self.transitions += expansion.transitions;
        for steps in expansion.steps {
            self.waiting.add(steps, |target| match target {
                Target::Known(number) => number,
                Target::Candidate(place) => numbers[place],
            });
        }
        Ok(())
    }

    /// The number of a candidate: a new one, unless another candidate was the same.
    fn take_in(&mut self, candidate: Candidate<M::State>) -> Result<Number, Cut> {
        let Candidate { state, fingerprint, from, shows } = candidate;
        let representative = self.model.representative(&state);
        if let Some(number) = self.visited.find(&representative, fingerprint) {
            return Ok(number);
        }
        if self.visited.len() as u64 >= self.bounds.states_max.min(u64::from(NOBODY)) {
            return Err(Cut);
        }
        let number = self.visited.insert(&representative, fingerprint, from);
        drop(representative);
        for place in 0..self.found.len() {
            if shows >> place & 1 == 1 {
                self.found[place].get_or_insert(number);
            }
        }
        if shows & self.enough != 0 {
            return Err(Cut);
        }
        match self.next.last_mut().filter(|chunk| chunk.states.len() < CHUNK) {
            Some(chunk) => chunk.states.push(state),
            None => self.next.push(Chunk { first: number, states: vec![state] }),
        }
        Ok(number)
    }

    fn level_bytes(&self, level: &[Chunk<M::State>]) -> u64 {
        let samples = level.iter().step_by(level.len() / 64 + 1).filter_map(|chunk| chunk.states.first());
        let heap = samples.clone().map(|state| self.model.heap_bytes(state) as u64).sum::<u64>();
        let heap = heap / (samples.count() as u64).max(1);
        let states = level.iter().map(|chunk| chunk.states.len() as u64).sum::<u64>();
        states * (size_of::<M::State>() as u64 + heap)
    }

    fn findings(&self) -> Vec<Finding<M::State, M::Action>> {
        let found = self.properties.iter().zip(&self.found);
        found
            .map(|(property, state)| Finding {
                property: property.name,
                expectation: property.expectation.clone(),
                path: state.map(|number| self.path(number)),
            })
            .collect()
    }

    /// The shortest path to a state, rebuilt.
    fn path(&self, number: Number) -> Path<M::State, M::Action> {
        let mut places = self.visited.actions_to(number).into_iter().map(usize::from);
        let place = places.next().expect("every path begins at an initial state");
        let initial = self.model.init_states().swap_remove(place);
        let (mut state, mut path) = (initial.clone(), Vec::new());
        for place in places {
            let mut actions = Vec::new();
            self.model.actions(&state, &mut actions);
            let action = actions.swap_remove(place);
            let next = self.model.next_state(&state, action.clone());
            state = next.unwrap_or_else(|| panic!("{action:?} led on before, but not when it is replayed"));
            path.push(action);
        }
        assert_eq!(self.number(&state), Some(number), "actions lead elsewhere when they are replayed");
        Path::from_actions(self.model, initial, &path).expect("it was just walked")
    }

    fn number(&self, state: &M::State) -> Option<Number> {
        let representative = self.model.representative(state);
        self.visited.find(&representative, fingerprint(&*representative))
    }

    fn starved(&self) -> Vec<Starvation<M::State, M::Action>> {
        let starved = self.waiting.starved(self.visited.len());
        starved
            .into_iter()
            .map(|starved| {
                let path = self.path(starved.state);
                let ending = match starved.round {
                    None => Ending::DeadEnd,
                    Some(round) => Ending::Cycle(self.walk(path.last_state().clone(), round)),
                };
                Starvation { waiter: starved.waiter, path, ending }
            })
            .collect()
    }

    /// The actions of a cycle that begins in a state.
    fn walk(&self, mut state: M::State, round: Round) -> Vec<M::Action> {
        let mut taken = Vec::new();
        for (label, number) in round {
            let steps = self.model.next_steps(&state).into_iter().find(|(action, next)| {
                Label::of(self.model.fair(&state, action)) == label && self.number(next) == Some(number)
            });
            let (action, next) = steps.expect("a step that was there is there when it is replayed");
            taken.push(action);
            state = next;
        }
        taken
    }
}

/// The probability that any two of so many states have the same fingerprint (the birthday bound).
fn collision(states: u64) -> f64 {
    let states = states as f64;
    -(-states * (states - 1.0) / 2.0 / 2_f64.powi(64)).exp_m1()
}
