//! MPA frames (FPDUs): a length, one DDP segment, padding and a CRC (RFC 5044 section 4).
//!
//! ```text
//! length 2 (of the segment only) | segment | 0-3 zero bytes | CRC32C 4 (over all before it; zero if not in use)
//! ```

/// The length field.
pub(crate) const LENGTH: usize = 2;
/// The CRC field; it is there even if CRCs are not in use.
pub(crate) const CRC: usize = 4;
/// The longest padding and CRC.
pub(crate) const TRAILER_MAX: usize = 3 + CRC;

/// The longest segment that a peer may be sent without markers, by its maximum TCP segment: the frame should fit in
/// one (RFC 5044 section 3, 4.5).
pub(crate) fn segment_max(tcp_segment: usize) -> usize {
    tcp_segment.saturating_sub(6 + tcp_segment % 4).clamp(128, 64_768)
}

/// How many zero bytes make a frame with a segment of this length a multiple of four (RFC 5044 section 4.1).
pub(crate) fn padding(segment: usize) -> usize {
    (LENGTH + segment).wrapping_neg() % 4
}

/// What follows a segment of this length.
pub(crate) fn trailer(segment: usize) -> usize {
    padding(segment) + CRC
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_multiples_of_four() {
        for segment in 14..200 {
            assert_eq!((LENGTH + segment + trailer(segment)) % 4, 0, "{segment}");
            assert!(padding(segment) < 4);
        }
    }

    #[test]
    fn a_frame_of_the_longest_segment_fits_in_one_tcp_segment() {
        for tcp_segment in 536..9000 {
            let segment = segment_max(tcp_segment);
            assert!(LENGTH + segment + trailer(segment) <= tcp_segment, "{tcp_segment}");
        }
        assert_eq!(segment_max(1448), 1442);
        assert_eq!(segment_max(0), 128);
        assert_eq!(segment_max(1 << 20), 64_768);
    }
}
