//! What every implementation of the traits must do. Each test takes a fabric, and connects it to itself.
//!
//! [`conformance_suite!`](crate::conformance_suite) makes a `#[test]` of each.

mod harness;
mod storm;

pub use harness::*;
pub use storm::storm;

use crate::{
    CloseReason, ConnectError, Fabric, OperationError, PRIVATE_DATA_MAX, Remote, RemoteAccess, Source, Tag,
};
use bytes::Bytes;

/// Makes a `#[test]` of each test of the suite. The argument is an expression that gives a new `impl Fabric`. With `@all`: an
/// array of all, each with its name.
#[macro_export]
macro_rules! conformance_suite {
    (@tests $fabric:expr; $($name:ident)*) => {
        $(#[test] fn $name() { $crate::conformance::$name(&$fabric); })*
    };
    (@array $($name:ident)*) => {
        [$((stringify!($name), $crate::conformance::$name as fn(&dyn $crate::Fabric))),*]
    };
    (@all) => { $crate::conformance_suite! { @names array } };
    ($fabric:expr) => { $crate::conformance_suite! { @names tests $fabric; } };
    (@names $what:ident $($before:tt)*) => {
        $crate::conformance_suite! { @$what $($before)*
            private_data_reach_both_sides
            a_peer_that_the_gate_refuses_hears_why
            private_data_that_no_device_carries_are_refused
            a_message_arrives_behind_the_data_written_before_it
            the_responder_can_speak_and_write_as_well
            offsets_count_from_the_start_of_what_is_exposed
            an_empty_write_succeeds_wherever_it_points
            after_a_fence_nothing_lands_and_other_tags_go_on
            a_fence_of_an_unknown_tag_or_of_one_twice_is_fine
            tags_are_not_reused
            an_unknown_tag_ends_the_connection
            a_forgotten_tag_is_unknown
            a_write_past_the_end_ends_the_connection_and_places_nothing_there
            a_write_to_what_is_only_readable_ends_the_connection
            another_connections_tag_is_unknown_and_harms_only_the_one_who_used_it
            a_read_fetches_the_peers_bytes
            a_read_of_what_is_only_writable_ends_the_connection
            many_reads_at_once_wait_for_their_turn
            exposed_memory_can_be_the_source_of_a_write
            a_write_from_a_fenced_source_is_dropped
            operations_on_the_wrong_tag_of_this_end_are_refused
            a_send_can_invalidate_a_tag_of_the_peers
            a_message_that_is_too_long_is_refused_here
            closing_tells_both_sides_and_frees_the_memory
            operations_after_the_close_are_refused
            a_listener_that_is_dropped_accepts_nobody_and_its_connections_go_on
            what_a_callback_starts_is_done_as_well
        }
    };
}

#[allow(missing_docs, reason = "the names are sentences")]
mod suite {
    use super::*;

    pub fn private_data_reach_both_sides(fabric: &dyn Fabric) {
        let longest = [7; PRIVATE_DATA_MAX];
        let server = Server::new(fabric, &longest);
        let pair = server.connect(fabric, &longest);
        assert_eq!(pair.near.peer(), server.address());
    }

    pub fn a_peer_that_the_gate_refuses_hears_why(fabric: &dyn Fabric) {
        let server = Server::new(fabric, b"token");
        let (recorder, _record) = recorder();
        match fabric.connect(server.address(), b"guess", Box::new(recorder), PATIENCE) {
            Err(ConnectError::Rejected { why, .. }) => assert_eq!(why, "unknown token"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("let in with a wrong token"),
        }
    }

    pub fn private_data_that_no_device_carries_are_refused(fabric: &dyn Fabric) {
        let server = Server::new(fabric, b"token");
        let (recorder, _record) = recorder();
        let long = [0; PRIVATE_DATA_MAX + 1];
        let result = fabric.connect(server.address(), &long, Box::new(recorder), PATIENCE);
        assert!(matches!(result, Err(ConnectError::PrivateDataTooLong { length: 49, max: 48 })));
    }

    pub fn a_message_arrives_behind_the_data_written_before_it(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(3 << 20, 0);
        for (round, length) in
            [1, 2, 3, 5, 4096, 61_440, 61_441, 200_000, 1 << 20, 3 << 20].into_iter().enumerate()
        {
            let tag = writable(&*pair.far, &memory, 0, length);
            let bytes: Vec<u8> = (0..length).map(|at| (at * 7 + round) as u8).collect();
            write(&*pair.near, bytes.clone(), tag, 0).expect("written");
            send(&*pair.near, &[round as u8; 24]).expect("sent");
            assert_eq!(pair.server.message(), [round as u8; 24]);
            assert!(memory.snapshot(0, length) == bytes, "{length} bytes are not those written");
            pair.far.fence(tag, PATIENCE).expect("fenced");
            pair.far.forget(tag);
        }
    }

    pub fn the_responder_can_speak_and_write_as_well(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(100_000, 0);
        let tag = writable(&*pair.near, &memory, 0, 100_000);
        send(&*pair.near, b"speak").expect("sent");
        assert_eq!(pair.server.message(), b"speak");
        write(&*pair.far, vec![9; 100_000], tag, 0).expect("written");
        send(&*pair.far, b"there").expect("sent");
        assert_eq!(pair.client.message(), b"there");
        assert!(memory.snapshot(0, 100_000).iter().all(|&byte| byte == 9));
    }

    pub fn offsets_count_from_the_start_of_what_is_exposed(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(12_288, 1);
        let tag = writable(&*pair.far, &memory, 4096, 4096);
        write(&*pair.near, vec![2; 10], tag, 4086).expect("written");
        send(&*pair.near, b"").expect("sent");
        assert_eq!(pair.server.message(), b"");
        let mut expected = vec![1; 12_288];
        expected[8182..8192].fill(2);
        assert!(memory.snapshot(0, 12_288) == expected);
    }

    pub fn an_empty_write_succeeds_wherever_it_points(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        write(&*pair.near, Vec::new(), Tag(12345), u64::MAX).expect("written");
        send(&*pair.near, b"alive").expect("sent");
        assert_eq!(pair.server.message(), b"alive");
    }

    pub fn after_a_fence_nothing_lands_and_other_tags_go_on(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(400_000, 0);
        let revoked = writable(&*pair.far, &memory, 0, 200_000);
        let other = writable(&*pair.far, &memory, 200_000, 200_000);
        write(&*pair.near, vec![1; 200_000], revoked, 0).expect("written");
        send(&*pair.near, b"first").expect("sent");
        assert_eq!(pair.server.message(), b"first");
        pair.far.fence(revoked, PATIENCE).expect("fenced");
        memory.fill(0, 200_000, 9);
        write(&*pair.near, vec![2; 200_000], revoked, 0).expect("written, to be dropped");
        write(&*pair.near, vec![3; 200_000], other, 0).expect("written");
        send(&*pair.near, b"second").expect("sent");
        assert_eq!(pair.server.message(), b"second");
        assert!(memory.snapshot(0, 200_000).iter().all(|&byte| byte == 9), "bytes landed behind the fence");
        assert!(memory.snapshot(200_000, 200_000).iter().all(|&byte| byte == 3), "the other tag was harmed");
    }

    pub fn a_fence_of_an_unknown_tag_or_of_one_twice_is_fine(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(4096, 0);
        let tag = writable(&*pair.far, &memory, 0, 4096);
        assert_eq!(pair.far.fence(tag, PATIENCE), Ok(()));
        assert_eq!(pair.far.fence(tag, PATIENCE), Ok(()));
        assert_eq!(pair.far.fence(Tag(tag.0 ^ 1), PATIENCE), Ok(()));
        pair.far.forget(tag);
        pair.far.forget(tag);
        assert_eq!(pair.far.fence(tag, PATIENCE), Ok(()));
        assert_eq!(memory.users(), 1, "the memory is free after its fence");
    }

    pub fn tags_are_not_reused(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(4096, 0);
        let mut tags = std::collections::HashSet::new();
        for _ in 0..1000 {
            let tag = writable(&*pair.far, &memory, 0, 4096);
            assert!(tags.insert(tag), "{tag:?} came twice");
            pair.far.fence(tag, PATIENCE).expect("fenced");
            pair.far.forget(tag);
        }
    }

    /// Both sides hear that the peer broke the protocol.
    fn assert_violated(pair: &Pair) {
        assert!(matches!(pair.server.closed(), CloseReason::Violation(_)));
        assert!(matches!(pair.client.closed(), CloseReason::Terminated(_)));
    }

    pub fn an_unknown_tag_ends_the_connection(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let _ = write(&*pair.near, vec![1], Tag(77), 0);
        assert_violated(&pair);
    }

    pub fn a_forgotten_tag_is_unknown(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(4096, 0);
        let tag = writable(&*pair.far, &memory, 0, 4096);
        write(&*pair.near, vec![1], tag, 0).expect("written");
        send(&*pair.near, b"placed").expect("sent");
        assert_eq!(pair.server.message(), b"placed");
        pair.far.fence(tag, PATIENCE).expect("fenced");
        pair.far.forget(tag);
        // The other end may have to hear of that first.
        send(&*pair.far, b"forgotten").expect("sent");
        assert_eq!(pair.client.message(), b"forgotten");
        let _ = write(&*pair.near, vec![2], tag, 0);
        assert_violated(&pair);
        assert_eq!(memory.snapshot(0, 1), [1]);
    }

    pub fn a_write_past_the_end_ends_the_connection_and_places_nothing_there(fabric: &dyn Fabric) {
        for (length, offset) in [(2, 4095), (1, 4096), (4097, 0), (2, u64::MAX)] {
            let pair = pair(fabric);
            let memory = Memory::new(12_288, 5);
            let tag = writable(&*pair.far, &memory, 4096, 4096);
            let _ = write(&*pair.near, vec![1; length], tag, offset);
            assert_violated(&pair);
            // A long write may come in several segments, of which the first ones are within bounds.
            assert!(memory.snapshot(0, 4096).iter().all(|&byte| byte == 5));
            assert!(memory.snapshot(8192, 4096).iter().all(|&byte| byte == 5));
        }
    }

    pub fn a_write_to_what_is_only_readable_ends_the_connection(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(4096, 5);
        let tag = readable(&*pair.far, &memory, 0, 4096);
        let _ = write(&*pair.near, vec![1], tag, 0);
        assert_violated(&pair);
        assert_eq!(memory.snapshot(0, 1), [5]);
    }

    pub fn another_connections_tag_is_unknown_and_harms_only_the_one_who_used_it(fabric: &dyn Fabric) {
        let server = Server::new(fabric, b"token");
        let (owner, thief) = (server.connect(fabric, b"token"), server.connect(fabric, b"token"));
        let memory = Memory::new(4096, 5);
        let tag = writable(&*owner.far, &memory, 0, 4096);
        let _ = write(&*thief.near, vec![1], tag, 0);
        assert_violated(&thief);
        write(&*owner.near, vec![2], tag, 1).expect("written");
        send(&*owner.near, b"fine").expect("sent");
        assert_eq!(owner.server.message(), b"fine");
        assert_eq!(memory.snapshot(0, 2), [5, 2]);
    }

    pub fn a_read_fetches_the_peers_bytes(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let (source, sink) = (Memory::new(300_000, 4), Memory::new(300_000, 0));
        let from = readable(&*pair.far, &source, 0, 300_000);
        let to = writable(&*pair.near, &sink, 0, 300_000);
        for (length, offset) in [(0, 0), (1, 299_999), (4096, 10), (200_000, 50_000)] {
            let (callback, result) = done();
            pair.near.read(Remote { tag: from, offset }, length, to, 100, callback);
            assert_eq!(result.recv_timeout(PATIENCE), Ok(Ok(())), "{length} bytes");
            let got = sink.snapshot(0, 300_000);
            assert!(got[100..100 + length as usize].iter().all(|&byte| byte == 4));
            assert_eq!(got[99], 0);
        }
    }

    pub fn a_read_of_what_is_only_writable_ends_the_connection(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let (source, sink) = (Memory::new(4096, 4), Memory::new(4096, 0));
        let from = writable(&*pair.far, &source, 0, 4096);
        let to = writable(&*pair.near, &sink, 0, 4096);
        let (callback, result) = done();
        pair.near.read(Remote { tag: from, offset: 0 }, 10, to, 0, callback);
        assert_violated(&pair);
        let result = result.recv_timeout(PATIENCE).expect("an answer");
        assert!(matches!(result, Err(OperationError::Closed(_))));
    }

    pub fn many_reads_at_once_wait_for_their_turn(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let (source, sink) = (Memory::new(4096, 4), Memory::new(1000 * 64, 0));
        let from = readable(&*pair.far, &source, 0, 4096);
        let to = writable(&*pair.near, &sink, 0, 1000 * 64);
        let results: Vec<_> = (0..1000)
            .map(|number| {
                let (callback, result) = done();
                pair.near.read(Remote { tag: from, offset: number }, 64, to, number * 64, callback);
                result
            })
            .collect();
        for result in results {
            assert_eq!(result.recv_timeout(PATIENCE), Ok(Ok(())));
        }
        assert!(sink.snapshot(0, 1000 * 64).iter().all(|&byte| byte == 4));
    }

    pub fn exposed_memory_can_be_the_source_of_a_write(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let (source, sink) = (Memory::new(300_000, 4), Memory::new(300_000, 0));
        let from = readable(&*pair.far, &source, 0, 300_000);
        let to = writable(&*pair.near, &sink, 0, 300_000);
        send(&*pair.near, b"ask").expect("sent");
        assert_eq!(pair.server.message(), b"ask");
        let (callback, result) = done();
        let exposed = Source::Exposed { tag: from, offset: 100_000, length: 150_000 };
        pair.far.write(exposed, Remote { tag: to, offset: 5 }, callback);
        assert_eq!(result.recv_timeout(PATIENCE), Ok(Ok(())));
        send(&*pair.far, b"done").expect("sent");
        assert_eq!(pair.client.message(), b"done");
        let got = sink.snapshot(0, 300_000);
        assert!(got[5..150_005].iter().all(|&byte| byte == 4) && got[4] == 0 && got[150_005] == 0);
    }

    pub fn a_write_from_a_fenced_source_is_dropped(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let (source, sink) = (Memory::new(4096, 4), Memory::new(4096, 0));
        let from = readable(&*pair.near, &source, 0, 4096);
        let to = writable(&*pair.far, &sink, 0, 4096);
        pair.near.fence(from, PATIENCE).expect("fenced");
        let (callback, result) = done();
        let exposed = Source::Exposed { tag: from, offset: 0, length: 4096 };
        pair.near.write(exposed, Remote { tag: to, offset: 0 }, callback);
        assert_eq!(result.recv_timeout(PATIENCE), Ok(Err(OperationError::Revoked(from))));
        send(&*pair.near, b"on").expect("the connection goes on");
        assert_eq!(pair.server.message(), b"on");
        assert_eq!(sink.snapshot(0, 1), [0]);
    }

    pub fn operations_on_the_wrong_tag_of_this_end_are_refused(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(8192, 4);
        let read = readable(&*pair.near, &memory, 0, 4096);
        let written = writable(&*pair.near, &memory, 4096, 4096);
        let there = Remote { tag: Tag(1), offset: 0 };
        let cases = [
            (written, 0, 1, OperationError::WrongAccess(written)),
            (Tag(read.0 ^ 1), 0, 1, OperationError::Revoked(Tag(read.0 ^ 1))),
            (read, 4096, 1, OperationError::OutOfBounds { tag: read, offset: 4096, length: 1 }),
            (read, u64::MAX, 2, OperationError::OutOfBounds { tag: read, offset: u64::MAX, length: 2 }),
        ];
        for (tag, offset, length, error) in cases {
            let (callback, result) = done();
            pair.near.write(Source::Exposed { tag, offset, length }, there, callback);
            assert_eq!(result.recv_timeout(PATIENCE), Ok(Err(error)));
        }
        let (callback, result) = done();
        pair.near.read(there, 1, read, 0, callback);
        assert_eq!(result.recv_timeout(PATIENCE), Ok(Err(OperationError::WrongAccess(read))));
    }

    pub fn a_send_can_invalidate_a_tag_of_the_peers(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(4096, 0);
        let tag = writable(&*pair.far, &memory, 0, 4096);
        write(&*pair.near, vec![1], tag, 0).expect("written");
        let (callback, result) = done();
        pair.near.send(Bytes::from_static(b"over"), Some(tag), callback);
        assert_eq!(result.recv_timeout(PATIENCE), Ok(Ok(())));
        write(&*pair.near, vec![2], tag, 0).expect("written, to be dropped");
        send(&*pair.near, b"alive").expect("sent");
        assert_eq!(pair.server.message(), b"over");
        assert_eq!(pair.server.message(), b"alive");
        assert_eq!(memory.snapshot(0, 1), [1]);
        let (callback, _result) = done();
        pair.near.send(Bytes::from_static(b"unknown"), Some(Tag(tag.0 ^ 1)), callback);
        assert_violated(&pair);
    }

    pub fn a_message_that_is_too_long_is_refused_here(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        assert_eq!(send(&*pair.near, &[1; 4097]), Err(OperationError::TooLong { length: 4097, max: 4096 }));
        send(&*pair.near, &[1; 4096]).expect("sent");
        assert_eq!(pair.server.message(), [1; 4096]);
    }

    pub fn closing_tells_both_sides_and_frees_the_memory(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        let memory = Memory::new(4096, 0);
        let _tag = writable(&*pair.far, &memory, 0, 4096);
        assert_eq!(memory.users(), 2);
        pair.near.close();
        assert_eq!(pair.client.closed(), CloseReason::Here);
        assert_eq!(pair.server.closed(), CloseReason::Peer);
        assert_eq!(memory.users(), 1, "a connection that is over keeps no memory");
    }

    pub fn operations_after_the_close_are_refused(fabric: &dyn Fabric) {
        let pair = pair(fabric);
        pair.near.close();
        assert_eq!(pair.client.closed(), CloseReason::Here);
        let closed = Err(OperationError::Closed(CloseReason::Here));
        assert_eq!(send(&*pair.near, b"late"), closed);
        assert_eq!(write(&*pair.near, vec![1], Tag(1), 0), closed);
        let memory = Memory::new(4096, 0);
        let exposed = pair.near.expose(memory.region(0, 4096), RemoteAccess::Write);
        assert_eq!(exposed, Err(crate::ExposeError::Closed));
        assert_eq!(pair.near.fence(Tag(1), PATIENCE), Ok(()));
        let (callback, result) = done();
        pair.near.read(Remote { tag: Tag(1), offset: 0 }, 1, Tag(2), 0, callback);
        assert_eq!(result.recv_timeout(PATIENCE), Ok(closed));
    }

    pub fn a_listener_that_is_dropped_accepts_nobody_and_its_connections_go_on(fabric: &dyn Fabric) {
        let server = Server::new(fabric, b"token");
        let pair = server.connect(fabric, b"token");
        let address = server.address();
        drop(server);
        let (recorder, _record) = recorder();
        assert!(fabric.connect(address, b"token", Box::new(recorder), PATIENCE).is_err());
        send(&*pair.near, b"on").expect("sent");
        assert_eq!(pair.server.message(), b"on");
    }

    pub fn what_a_callback_starts_is_done_as_well(fabric: &dyn Fabric) {
        fn chain(endpoint: std::sync::Arc<dyn crate::Endpoint>, left: u32) {
            let next = endpoint.clone();
            endpoint.send(
                Bytes::copy_from_slice(&left.to_be_bytes()),
                None,
                Box::new(move |result| {
                    if left > 0 && result.is_ok() {
                        chain(next, left - 1);
                    }
                }),
            );
        }
        let pair = pair(fabric);
        chain(pair.near.clone(), 20_000);
        for left in (0..=20_000u32).rev() {
            assert_eq!(pair.server.message(), left.to_be_bytes());
        }
    }
}

pub use suite::*;
