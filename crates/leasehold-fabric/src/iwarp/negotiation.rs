//! What our own two ends agree on, in the first 8 bytes of the private data: longer segments than the standard's.
//!
//! ```text
//! "LSH1" 4 | version 1 | flags 1 (zero) | segment_max 2: payload bytes of a segment that the sender takes
//! ```
//! A peer that shows no such bytes is a third party, and gets segments that fit in one of TCP's.

use bytes::{Buf, BufMut};

const KEY: &[u8; 4] = b"LSH1";
const VERSION: u8 = 1;

/// How long it is.
pub(crate) const LENGTH: usize = 8;

/// What one of our ends offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The most payload that it takes in one segment.
    pub(crate) segment_max: u16,
}

impl Offer {
    /// The offer and the user's private data. `None`: a third party, all the data are the user's.
    pub(crate) fn split(data: &[u8]) -> (Option<Offer>, &[u8]) {
        let Some((mut head, rest)) = data.split_at_checked(LENGTH) else { return (None, data) };
        if !head.starts_with(KEY) {
            return (None, data);
        }
        head.advance(KEY.len() + 2);
        (Some(Offer { segment_max: head.get_u16() }), rest)
    }

    /// The offer in front of the user's private data.
    pub(crate) fn join(self, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(LENGTH + data.len());
        out.put_slice(KEY);
        out.put_u8(VERSION);
        out.put_u8(0);
        out.put_u16(self.segment_max);
        out.put_slice(data);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_split_from_the_users_data_and_a_third_partys_data_are_left_alone() {
        let offer = Offer { segment_max: 61_440 };
        assert_eq!(Offer::split(&offer.join(b"token")), (Some(offer), &b"token"[..]));
        assert_eq!(Offer::split(b"LSH"), (None, &b"LSH"[..]));
        assert_eq!(Offer::split(b"0123456789abcdef"), (None, &b"0123456789abcdef"[..]));
    }
}
