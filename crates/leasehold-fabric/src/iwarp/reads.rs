//! Reads that this end asks of its peer: no more at once than the peer serves (RFC 5040 section 3.3, RFC 6581 section
//! 9.1); the rest wait.

use super::exposure::Exposure;
use super::rdmap::ReadRequest;
use crate::{Done, OperationError, Remote};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

/// The most that one request asks for; its length field has 32 bits.
const PART_MAX: u64 = 1 << 30;

/// The reads of one connection.
pub(crate) struct Reads {
    state: Mutex<State>,
}

struct State {
    /// The peer answers in the order of the requests (RFC 5040 section 5.5, rule 7).
    outstanding: VecDeque<Part>,
    waiting: VecDeque<Part>,
    at_once_max: usize,
}

/// One request's worth of a read.
struct Part {
    sink: Arc<Exposure>,
    request: ReadRequest,
    /// On the last part.
    done: Option<Done>,
}

/// Where the response that is due belongs.
#[derive(Clone)]
pub(crate) struct Response {
    pub(crate) sink: Arc<Exposure>,
    pub(crate) next: u64,
    pub(crate) left: u64,
}

impl Reads {
    pub(crate) fn new(at_once_max: u16) -> Reads {
        let state =
            State { outstanding: VecDeque::new(), waiting: VecDeque::new(), at_once_max: at_once_max.into() };
        Reads { state: Mutex::new(state) }
    }

    /// How many may wait: none if the peer serves none.
    pub(crate) fn at_once_max(&self, waiting_max: usize) -> usize {
        if self.lock().at_once_max == 0 { 0 } else { waiting_max }
    }

    /// Puts a read behind those that wait. `Err`: too many wait, or the peer serves none.
    pub(crate) fn ask(
        &self,
        source: Remote,
        length: u64,
        sink: &Arc<Exposure>,
        sink_offset: u64,
        waiting_max: usize,
        done: Done,
    ) -> Result<(), Done> {
        let mut state = self.lock();
        if state.at_once_max == 0 || state.waiting.len() >= waiting_max {
            return Err(done);
        }
        sink.users.fetch_add(1, Ordering::AcqRel);
        let mut done = Some(done);
        let mut asked = 0;
        loop {
            let part = (length - asked).min(PART_MAX);
            let is_last = asked + part == length;
            let request = ReadRequest {
                sink_tag: sink.tag().0,
                sink_offset: sink_offset + asked,
                length: part as u32,
                source_tag: source.tag.0,
                source_offset: source.offset.wrapping_add(asked),
            };
            let done = if is_last { done.take() } else { None };
            state.waiting.push_back(Part { sink: sink.clone(), request, done });
            asked += part;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Hands the requests that may be sent now to `send`, in order.
    pub(crate) fn admit(&self, mut send: impl FnMut(ReadRequest)) {
        let mut state = self.lock();
        while state.outstanding.len() < state.at_once_max {
            let Some(part) = state.waiting.pop_front() else { return };
            send(part.request);
            state.outstanding.push_back(part);
        }
    }

    /// Which response is due.
    pub(crate) fn due(&self) -> Option<Response> {
        self.lock().outstanding.front().map(|part| Response {
            sink: part.sink.clone(),
            next: part.request.sink_offset,
            left: part.request.length.into(),
        })
    }

    /// The response that was due has come.
    pub(crate) fn answered(&self) -> Option<(Done, Result<(), OperationError>)> {
        let part = self.lock().outstanding.pop_front()?;
        let done = part.done?;
        part.sink.users.fetch_sub(1, Ordering::AcqRel);
        let tag = part.sink.tag();
        Some((done, if part.sink.is_live() { Ok(()) } else { Err(OperationError::Revoked(tag)) }))
    }

    /// Gives all up.
    pub(crate) fn abandon(&self) -> Vec<Done> {
        let mut state = self.lock();
        let outstanding = std::mem::take(&mut state.outstanding);
        let waiting = std::mem::take(&mut state.waiting);
        outstanding.into_iter().chain(waiting).filter_map(|part| part.done).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the reads")
    }
}
