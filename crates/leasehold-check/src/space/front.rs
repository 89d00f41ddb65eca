//! Which designs no other one beats.

use crate::report::Costs;

/// Costs as numbers, of which less is better: copies, refaults, waits for ever, bounded waits, refusals (two for each;
/// one where only a device that cannot fault is refused), kills, half writes.
#[must_use]
pub fn figures(costs: &Costs) -> [f64; 7] {
    let for_ever = costs.waits.iter().filter(|wait| wait.ends_with("for ever")).count();
    let refused = costs.refuses.iter().map(|what| if what.contains("unless") { 1 } else { 2 });
    [
        costs.copies,
        costs.refaults,
        for_ever as f64,
        (costs.waits.len() - for_ever) as f64,
        f64::from(refused.sum::<i32>()),
        f64::from(u8::from(costs.kills)),
        f64::from(u8::from(costs.half_writes)),
    ]
}

/// Whether one is better in some figure and worse in none.
fn beats<const N: usize>(one: &[f64; N], other: &[f64; N]) -> bool {
    one.iter().zip(other).all(|(one, other)| one <= other) && one != other
}

/// Of each, whether none of the others beats it.
#[must_use]
pub fn front<const N: usize>(all: &[[f64; N]]) -> Vec<bool> {
    all.iter().map(|one| !all.iter().any(|other| beats(other, one))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nobody_on_the_front_is_beaten_and_everybody_else_is_beaten_by_somebody_on_it(
            all in prop::collection::vec(prop::array::uniform3((0..5u8).prop_map(f64::from)), 1..40)
        ) {
            let on_front = front(&all);
            prop_assert!(on_front.contains(&true));
            for (one, &is_on_it) in all.iter().zip(&on_front) {
                let worse = |other: &[f64; 3]| (0..3).all(|at| other[at] <= one[at]) && (0..3).any(|at| other[at] < one[at]);
                let beaten = all.iter().zip(&on_front).any(|(other, &on)| on && worse(other));
                prop_assert_eq!(beaten, !is_on_it);
            }
        }
    }

    #[test]
    fn a_wait_for_ever_is_not_a_bounded_one() {
        let of = |waits: Vec<&'static str>| figures(&Costs { waits, ..Costs::default() });
        let bounded = of(vec!["a truncate for the holder, at most grace and fence"]);
        let for_ever = of(vec!["a truncate for the holder, for ever"]);
        assert_eq!((bounded[2], bounded[3], for_ever[2], for_ever[3]), (0.0, 1.0, 1.0, 0.0));
    }
}
