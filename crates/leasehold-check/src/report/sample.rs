//! Reports that were made up, to test how reports look. Nothing in them was found by a check.

use super::costs::{Refusal, Wait, Waiter, Work};
use super::space::{Answer, Change, DECISIONS, Design, Killer, Nearest, OnHost, Space};
use super::{
    Costs, Explored, PromiseReport, Report, SchemeReport, Source, Step, Trace, Verdict, Verdict::Broken,
    Verdict::Kept, Verdict::Vacuous,
};
use leasehold_core::promise::Promise;
use std::time::Duration;

const TRUNCATE_FOR_EVER: Wait = Wait { what: Waiter::Truncate, for_ever: true };

/// Four schemes; the second is not as declared, the last was cut off.
pub(super) fn report() -> Report {
    Report {
        bounds: "2 blocks, 2 keys, 1 layout change, 1 crash; grace of 2 ticks".to_owned(),
        schemes: vec![
            scheme("naive", [Broken, Broken, Broken, Broken, Kept, Vacuous, Vacuous, Kept, Broken, Broken]),
            undeclared(),
            SchemeReport {
                costs: Costs {
                    refuses: vec![Refusal { what: Work::WritePageCache, unless_faults: true }],
                    ..Costs::default()
                },
                ..scheme("registration_refused", [Vacuous; 10])
            },
            SchemeReport {
                costs: Costs {
                    copies: 1.5,
                    refaults: 0.25,
                    waits: vec![
                        Wait { what: Waiter::Truncate, for_ever: false },
                        Wait { what: Waiter::LocalRead, for_ever: true },
                    ],
                    refuses: vec![Refusal { what: Work::ChangeLayout, unless_faults: false }],
                    kills: true,
                    half_writes: true,
                    one_commit: true,
                },
                explored: Explored { cut_off: Some("the limit of 10 million states"), ..explored() },
                ..scheme("leasehold", [Kept; 10])
            },
        ],
    }
}

fn undeclared() -> SchemeReport {
    let mut scheme =
        scheme("break_layouts", [Broken, Kept, Kept, Kept, Broken, Vacuous, Kept, Kept, Kept, Kept]);
    scheme.costs.waits = vec![TRUNCATE_FOR_EVER];
    scheme.promises[4].declared = Kept;
    scheme.promises[4].trace = Some(for_ever());
    scheme
}

fn scheme(name: &str, found: [Verdict; 10]) -> SchemeReport {
    let promise = |(promise, found): (Promise, Verdict)| PromiseReport {
        promise,
        found,
        declared: found,
        reason: "made up: a live key lets the peer write <whatever> it likes & when it likes",
        trace: (found == Broken).then(stray),
    };
    SchemeReport {
        name: name.to_owned(),
        idea: "Made up: get_user_pages, DMA, set_page_dirty, put_page.",
        sources: &[
            Source { author: "A. Person", date: "2018-05-18" },
            Source { author: "B. \"Other\" <b@example.org>", date: "2019-02-07" },
        ],
        promises: Promise::ALL.into_iter().zip(found).map(promise).collect(),
        costs: Costs::default(),
        explored: explored(),
    }
}

fn explored() -> Explored {
    Explored {
        worlds: 4,
        states: 1_234_567,
        transitions: 7_654_321,
        depth: 29,
        cut_off: None,
        visited_bytes: 1_234_567 * 24,
        frontier_bytes: 40 << 20,
        collision: 4.1e-8,
        elapsed: Duration::from_millis(1_250),
    }
}

fn step(from: usize, to: usize, what: &str) -> Step {
    Step { from, to, what: what.to_owned() }
}

/// Seven lanes, messages both ways, notes at both edges, labels that must be wrapped.
pub(super) fn stray() -> Trace {
    Trace {
        world: "page cache, a filesystem that writes in place, a second tenant that takes what is freed".to_owned(),
        lanes: vec!["peer", "key/NIC", "memory", "filesystem", "disk", "breaker", "holder"],
        steps: vec![
            step(6, 1, "registers block 0 for writing"),
            step(1, 2, "pins page A"),
            step(0, 1, "RDMA Write: 4096 bytes, in two parts"),
            step(1, 2, "first half lands in page A"),
            step(5, 3, "truncate to 0"),
            step(3, 2, "takes page A out of the file: it is free as soon as the pin is gone, and no one looks"),
            step(3, 5, "returns"),
            step(3, 3, "gives page A to tenant 2"),
            step(5, 5, "believes that all is well, since the truncate has returned without any error"),
            step(1, 2, "second half lands"),
        ],
        broken: "the second half of the write landed in page A, which has been a page of tenant 2 since step 8, and \
                 not the file's"
            .to_owned(),
    }
}

/// Three lanes, of which one takes no part.
pub(super) fn for_ever() -> Trace {
    Trace {
        world: "DAX".to_owned(),
        lanes: vec!["breaker", "filesystem", "disk", "holder"],
        steps: vec![
            step(3, 1, "registers block 0"),
            step(0, 1, "truncate to 0"),
            step(1, 1, "waits until the pin is gone"),
            step(3, 3, "never lets go"),
        ],
        broken: "the truncate waits for ever".to_owned(),
    }
}

/// Three safe designs, of which the last is beaten.
pub(super) fn space() -> Space {
    let design = |name, on_front| Design {
        name,
        decisions: DECISIONS.map(|what| format!("{} that is made up", format!("{what} ").repeat(6))),
        costs: Costs { copies: 1.0, waits: vec![TRUNCATE_FOR_EVER], kills: true, ..Costs::default() },
        alike: 1 + u64::from(name == Some("leasehold")),
        on_front,
    };
    let answer = |answer, killer| Answer {
        decision: "admission of writers",
        answer,
        designs: vec![20, 4, 0, 0],
        safe: vec![2, 0, 0, 0],
        safe_but_untold: vec![1, 0, 0, 0],
        killer,
    };
    let killer = Killer { promise: Promise::P3, designs: 7, of: 9, trace: stray() };
    Space {
        bounds: "small".to_owned(),
        designs: 2304,
        distinct: 900,
        idle: 100,
        safe_distinct: 3,
        safe_but_untold: 1,
        hosts: vec![OnHost {
            host: "page cache",
            data_path: "the file's own frames",
            designs: 20,
            safe: 2,
            safe_but_untold: 3,
        }],
        answers: vec![answer("allow", None), answer("lease", Some(killer))],
        nearest: vec![Nearest {
            scheme: "naive",
            changes: vec![Change { decision: "fsync", answer: "another".to_owned() }],
            ways: 2,
        }],
        safe: vec![design(Some("leasehold"), true), design(None, true), design(Some("bounce"), false)],
        explored: Explored { worlds: 9000, states: 1_000_000, ..Explored::default() },
    }
}
