//! Which designs no other one beats.

/// Of each, whether none of the others is less.
#[must_use]
pub fn front<T: PartialOrd>(all: &[T]) -> Vec<bool> {
    all.iter().map(|one| !all.iter().any(|other| other < one)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Ordering;

    #[derive(Debug, PartialEq)]
    struct Figures([u8; 3]);

    impl PartialOrd for Figures {
        fn partial_cmp(&self, Figures(other): &Figures) -> Option<Ordering> {
            let orders = || self.0.iter().zip(other).map(|(one, other)| one.cmp(other));
            match (orders().any(Ordering::is_lt), orders().any(Ordering::is_gt)) {
                (true, true) => None,
                (true, false) => Some(Ordering::Less),
                (false, true) => Some(Ordering::Greater),
                (false, false) => Some(Ordering::Equal),
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_on_the_front_is_beaten_and_everybody_else_is_beaten_by_somebody_on_it(
            all in prop::collection::vec(prop::array::uniform3(0..5u8).prop_map(Figures), 1..40)
        ) {
            let on_front = front(&all);
            prop_assert!(on_front.contains(&true));
            for (one, &is_on_it) in all.iter().zip(&on_front) {
                let beaten = all.iter().zip(&on_front).any(|(other, &on)| on && other < one);
                prop_assert_eq!(beaten, !is_on_it);
            }
        }
    }
}
