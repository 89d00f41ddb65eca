//! Steering tags that are hard to predict (RFC 5040 section 8.1.1) and never come twice on a connection.
//!
//! A counter goes through a permutation of 32 bits that only this end knows: a Feistel network, with SipHash under a
//! key from the system as its round function. So nothing has to be remembered of the tags that were used.

use std::hash::{DefaultHasher, Hasher};

const ROUNDS: u8 = 8;

/// The tags of one connection.
pub(crate) struct Generator {
    key: [u8; 16],
    next: u64,
}

impl Generator {
    /// # Panics
    /// If the system has no random bytes: tags that a peer can guess are no protection.
    pub(crate) fn new() -> Generator {
        let mut key = [0; 16];
        getrandom::fill(&mut key).expect("the system gives random bytes");
        Generator { key, next: 0 }
    }

    /// A tag that was not given before, and not 0. `None`: all were.
    pub(crate) fn next(&mut self) -> Option<u32> {
        loop {
            let counter = u32::try_from(self.next).ok()?;
            self.next += 1;
            match self.permute(counter) {
                0 => {}
                tag => return Some(tag),
            }
        }
    }

    fn permute(&self, value: u32) -> u32 {
        let (mut left, mut right) = ((value >> 16) as u16, value as u16);
        for round in 0..ROUNDS {
            let mut hasher = DefaultHasher::new();
            hasher.write(&self.key);
            hasher.write_u8(round);
            hasher.write_u16(right);
            (left, right) = (right, left ^ hasher.finish() as u16);
        }
        u32::from(left) << 16 | u32::from(right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_tag_comes_twice() {
        let mut generator = Generator::new();
        let tags: HashSet<u32> = (0..100_000).map(|_| generator.next().expect("plenty")).collect();
        assert_eq!(tags.len(), 100_000);
        assert!(!tags.contains(&0));
    }

    #[test]
    fn two_connections_have_different_tags() {
        let (mut one, mut other) = (Generator::new(), Generator::new());
        let one: HashSet<u32> = (0..1000).map(|_| one.next().expect("plenty")).collect();
        let same = (0..1000).filter(|_| one.contains(&other.next().expect("plenty"))).count();
        assert!(same < 3, "{same} of 1000 tags are the same");
    }

    #[test]
    fn tags_end_rather_than_repeat() {
        let mut generator = Generator::new();
        generator.next = u64::from(u32::MAX) + 1;
        assert_eq!(generator.next(), None);
    }
}
