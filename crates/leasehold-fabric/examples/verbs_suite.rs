//! The conformance suite and the revocation storm on this host's RDMA devices: `verbs_suite ADDRESS ROUNDS`, with the
//! address of a device's network interface. A line of `SUITE` for each, and one at the end.
//!
//! The lab runs it in a guest (`cargo xtask lab --only verbs`).

use bytes::Bytes;
use leasehold_fabric::conformance::{Memory, PATIENCE, pair, storm, writable};
use leasehold_fabric::verbs::{Config, Verbs};
use leasehold_fabric::{ConnectError, Endpoint, Fabric, Gate, Handler, ListenError, Listener};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A fabric whose listeners are at a device's address, where the suite asks for the loopback's.
struct At {
    verbs: Verbs,
    address: IpAddr,
}

impl Fabric for At {
    fn listen(&self, address: SocketAddr, gate: Arc<dyn Gate>) -> Result<Box<dyn Listener>, ListenError> {
        self.verbs.listen(SocketAddr::new(self.address, address.port()), gate)
    }

    fn connect(
        &self,
        address: SocketAddr,
        private_data: &[u8],
        handler: Box<dyn Handler>,
        timeout: Duration,
    ) -> Result<(Arc<dyn Endpoint>, Bytes), ConnectError> {
        self.verbs.connect(address, private_data, handler, timeout)
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: verbs_suite ADDRESS ROUNDS";
    let address = arguments.next().and_then(|text| text.parse().ok()).expect(usage);
    let rounds: usize = arguments.next().and_then(|text| text.parse().ok()).expect(usage);
    let only = arguments.next();
    let verbs = match Verbs::open(Config::default()) {
        Ok(verbs) => verbs,
        Err(error) => {
            println!("SUITE failed: {error}");
            return ExitCode::FAILURE;
        }
    };
    let fabric = At { verbs, address };
    let (mut passed, mut failed) = (0, 0);
    let mut run = |name: &str, test: &dyn Fn()| {
        if only.as_ref().is_some_and(|only| only != name) {
            return;
        }
        let began = Instant::now();
        let is_passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        *(if is_passed { &mut passed } else { &mut failed }) += 1;
        println!("SUITE {} {name} ({:.1?})", if is_passed { "passed" } else { "FAILED" }, began.elapsed());
    };
    for (name, test) in leasehold_fabric::conformance_suite!(@all) {
        run(name, &|| test(&fabric));
    }
    for (size, share) in [(4 << 10, 5), (64 << 10, 3), (1 << 20, 2)] {
        run(&format!("storm_of_{size}_bytes"), &|| {
            let mut fences = storm(&fabric, size, rounds * share / 10);
            fences.sort_unstable();
            let (median, longest) = (fences[fences.len() / 2], fences[fences.len() - 1]);
            println!(
                "SUITE storm {size} {} rounds, fence median {median:.1?}, longest {longest:.1?}",
                fences.len()
            );
        });
    }
    run("cost_of_keys", &|| cost_of_keys(&fabric));
    println!("SUITE done {passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What it takes to open memory and to close it again, while nobody writes.
fn cost_of_keys(fabric: &dyn Fabric) {
    let pair = pair(fabric);
    for size in [4 << 10, 1 << 20, 16 << 20] {
        let memory = Memory::new(size, 0);
        let (mut exposing, mut fencing) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let began = Instant::now();
            let tag = writable(&*pair.far, &memory, 0, size);
            exposing.push(began.elapsed());
            let began = Instant::now();
            pair.far.fence(tag, PATIENCE).expect("fenced");
            fencing.push(began.elapsed());
            pair.far.forget(tag);
        }
        exposing.sort_unstable();
        fencing.sort_unstable();
        println!(
            "SUITE keys {size} bytes: exposed in {:.1?}, fenced in {:.1?} (medians)",
            exposing[10], fencing[10]
        );
    }
}
