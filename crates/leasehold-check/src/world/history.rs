//! What may be read where: for each part of a file, every value that was ever written there, in order.

use super::{LOCAL_VALUE, Parts, Value};

const VALUES_MAX: usize = 10;

/// One part (half a block) of a file.
///
/// Invariant: `durable <= visible < values.len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Part {
    values: [Value; VALUES_MAX],
    length: u8,
    /// The place of the newest value that a commit, or a change, has acknowledged: reads see it or a newer one.
    visible: u8,
    /// The place of the newest value that a sync has acknowledged: after a crash it is there, or a newer one.
    durable: u8,
}

/// All parts of one file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct History(Vec<Part>);

/// What was acknowledged at some moment.
pub(super) type Floors = Vec<u8>;

impl History {
    /// A durable file.
    pub fn new(parts: usize, value: Value) -> History {
        let mut values = [0; VALUES_MAX];
        values[0] = value;
        History(vec![Part { values, length: 1, visible: 0, durable: 0 }; parts])
    }

    /// The value gets there, now or soon. Where it is already, it stays what it is, if it is the same write.
    pub fn write(&mut self, parts: Parts, value: Value) {
        for part in &mut self.0[parts] {
            if part.place(value).is_none() {
                part.push(value);
            }
        }
    }

    /// The value is the newest one there from now on. What a peer was loaded with, and has not written, is no new one.
    pub fn take_effect(&mut self, part: usize, value: Value) {
        let part = &mut self.0[part];
        let place = part.place(value);
        if place.is_none() || value == LOCAL_VALUE && place != Some(part.length - 1) {
            part.push(value);
        }
    }

    /// Zeros get there by a change, whatever was there before.
    pub fn zero(&mut self, parts: Parts) {
        self.0[parts].iter_mut().for_each(|part| part.push(0));
    }

    /// The newest zeros, or the value, are acknowledged.
    pub fn acknowledge(&mut self, parts: Parts, value: Value) {
        for part in &mut self.0[parts] {
            if let Some(place) = part.place(value) {
                part.visible = part.visible.max(place);
            }
        }
    }

    /// What reads must see from now on.
    pub fn visible(&self) -> Floors {
        self.0.iter().map(|part| part.visible).collect()
    }

    /// What a crash must leave from now on.
    pub fn synced(&mut self, floors: &[u8]) {
        for (part, &floor) in self.0.iter_mut().zip(floors) {
            part.durable = part.durable.max(floor);
        }
    }

    /// Whether a sync has acknowledged anything since the beginning.
    pub fn was_synced(&self) -> bool {
        self.0.iter().any(|part| part.durable > 0)
    }

    /// Whether a commit or a change was acknowledged since the beginning.
    pub fn was_acknowledged(&self) -> bool {
        self.0.iter().any(|part| part.visible > 0)
    }

    /// Whether `value`, found in a part, is at least as new as the floor; `None`: nobody wrote it there.
    pub fn is_new(&self, part: usize, value: Value, floor: u8) -> Option<bool> {
        self.0[part].place(value).map(|place| place >= floor)
    }

    /// Whether a crash must leave `value` there, or a newer one.
    pub fn is_durable(&self, part: usize, value: Value) -> bool {
        self.0[part].place(value).is_some_and(|place| place <= self.0[part].durable)
    }

    /// Whether `value`, found in a part after a crash, may be there.
    pub fn may_survive(&self, part: usize, value: Value) -> bool {
        self.is_new(part, value, self.0[part].durable) == Some(true)
    }
}

impl Part {
    fn place(&self, value: Value) -> Option<u8> {
        let there = &self.values[..usize::from(self.length)];
        there.iter().rposition(|&other| other == value).map(|place| place as u8)
    }

    fn push(&mut self, value: Value) {
        self.values[usize::from(self.length)] = value;
        self.length += 1;
    }
}
