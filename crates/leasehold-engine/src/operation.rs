//! What a breaker wants to do, for people: holders, the break log, whoever asks why.

use crate::storage::Detail;
use leasehold_core::identity::Identity;
use leasehold_core::input::{Access, Change, Input};
use leasehold_core::output::Operation;
use std::sync::{Arc, Weak};

/// Names operations, removals by what removes.
///
/// To the core every removal is the same, but a holder should hear what is to come in place of its file. The core hands a
/// change's breaker back as it was given, so the breaker tells which removal it is.
#[derive(Default)]
pub(crate) struct Operations {
    /// As long as the core, or anybody, knows the breaker.
    replacing: Vec<(Weak<Identity>, &'static str)>,
}

impl Operations {
    /// Takes note of a request that is about to be made.
    pub(crate) fn note(&mut self, input: &Input, detail: &Detail) {
        let Input::Change { breaker, .. } = input else { return };
        let name = match detail {
            Detail::RenameOver { .. } => "rename another file over it",
            Detail::PlaceOver { .. } => "clone another file over it",
            _ => return,
        };
        self.replacing.retain(|(breaker, _)| breaker.strong_count() > 0);
        self.replacing.push((Arc::downgrade(breaker), name));
    }

    /// Behind "wants to".
    pub(crate) fn describe(&self, operation: Operation, breaker: Option<&Arc<Identity>>) -> String {
        match operation {
            Operation::Change(Change::Truncate { size }) => format!("truncate to {size}"),
            Operation::Change(Change::Punch { range }) => format!("punch {range}"),
            Operation::Change(Change::Zero { range }) => format!("zero {range}"),
            Operation::Change(Change::Collapse { range }) => format!("collapse {range}"),
            Operation::Change(Change::Clone) => "clone".to_owned(),
            Operation::Change(Change::Adopt { range }) => format!("adopt {range}"),
            Operation::Change(Change::Remove) => self.removal(breaker).to_owned(),
            Operation::Acquire { range, access } => match access {
                Access::Read => format!("acquire {range} for reading"),
                Access::Overwrite | Access::Update => format!("acquire {range} for writing"),
            },
        }
    }

    fn removal(&self, breaker: Option<&Arc<Identity>>) -> &'static str {
        let by = |noted: &Weak<Identity>| {
            breaker.is_some_and(|breaker| std::ptr::eq(noted.as_ptr(), Arc::as_ptr(breaker)))
        };
        self.replacing.iter().find(|(noted, _)| by(noted)).map_or("remove", |(_, name)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::StorePath;
    use leasehold_core::identity::Evidence;
    use leasehold_core::ids::{FileId, RequestId};

    fn removal(detail: Detail) -> (Input, Detail, Arc<Identity>) {
        let (host, program) = ("h".to_owned(), "p".to_owned());
        let breaker = Arc::new(Identity { host, pid: 1, uid: 0, program, evidence: Evidence::Verified });
        let (request, file, change) = (RequestId(1), FileId(1), Change::Remove);
        (Input::Change { request, file, change, breaker: breaker.clone() }, detail, breaker)
    }

    #[test]
    fn each_removal_is_named_by_what_removes_though_one_process_does_them_all() {
        let path = |text| StorePath::parse(text).expect("a path");
        let rename = Detail::RenameOver { from: path("/a"), to: path("/b") };
        let removals = [
            (removal(Detail::Unlink { path: path("/b"), durable: true }), "remove"),
            (removal(rename), "rename another file over it"),
        ];
        let mut operations = Operations::default();
        for ((input, detail, _), _) in &removals {
            operations.note(input, detail);
        }
        for ((_, _, breaker), name) in &removals {
            assert_eq!(operations.describe(Operation::Change(Change::Remove), Some(breaker)), *name);
        }
        drop(removals);
        operations.note(&removal(Detail::None).0, &Detail::Unlink { path: path("/b"), durable: true });
        let (input, detail, _breaker) = removal(Detail::RenameOver { from: path("/a"), to: path("/b") });
        operations.note(&input, &detail);
        assert_eq!(operations.replacing.len(), 1, "those that are over are forgotten");
    }
}
