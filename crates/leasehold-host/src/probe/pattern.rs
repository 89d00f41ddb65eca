//! What a page holds, so that it tells who wrote it, and for which page.

/// The unit in which is counted. The pages of a mapping are of this size or a multiple, and so are its pins.
pub const PAGE_BYTES: usize = 4096;

/// Memory that can be read into, or written from, with O_DIRECT.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
pub(super) struct Page(pub [u8; PAGE_BYTES]);

/// Who wrote; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u32);

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// One writer's bytes, all of the page, meant for this page of his.
    Marked(Mark, u32),
    /// Nothing, or nothing any more.
    Zeros,
    /// Parts of several, or something else.
    Mixed,
    /// The read failed: a checksum does not match.
    Unreadable,
    /// Past the end of the file.
    Absent,
}

impl Page {
    pub(super) const ZEROS: Page = Page([0; PAGE_BYTES]);

    /// What `mark` writes to page `number`: every word says so.
    pub(super) fn of(mark: Mark, number: u32) -> Page {
        let mut page = Page::ZEROS;
        let word = (u64::from(mark.0) << 32) | u64::from(number);
        for bytes in page.0.chunks_exact_mut(8) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        page
    }

    pub(super) fn content(&self) -> Content {
        let (words, _) = self.0.as_chunks::<8>();
        let first = u64::from_le_bytes(words[0]);
        if words.iter().any(|word| u64::from_le_bytes(*word) != first) {
            return Content::Mixed;
        }
        match (first >> 32) as u32 {
            0 if first == 0 => Content::Zeros,
            0 => Content::Mixed,
            mark => Content::Marked(Mark(mark), first as u32),
        }
    }
}

/// What `mark` writes to `pages` pages, from this one on.
#[must_use]
pub fn bytes(mark: Mark, first: u32, pages: usize) -> Vec<u8> {
    (first..).take(pages).flat_map(|number| Page::of(mark, number).0).collect()
}

/// What each page of some memory holds.
pub(super) fn contents(bytes: &[u8]) -> Vec<Content> {
    let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
    pages.iter().map(|page| Page(*page).content()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_tells_whose_it_is_and_one_changed_byte_makes_it_nobodys() {
        let mut page = Page::of(Mark(7), 3);
        assert_eq!(page.content(), Content::Marked(Mark(7), 3));
        assert_eq!(Page::ZEROS.content(), Content::Zeros);
        for at in [0, 8, PAGE_BYTES - 1] {
            page.0[at] ^= 1;
            assert_eq!(page.content(), Content::Mixed, "byte {at}");
            page.0[at] ^= 1;
        }
    }
}
