//! What fuzzing has found so far: inputs that reach different places, in `fuzz/corpus`.

use std::path::Path;

#[test]
fn what_fuzzing_found_does_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (target, fuzz) in leasehold::fuzz::targets() {
        let inputs = corpus.join(target);
        let entries = inputs.read_dir().unwrap_or_else(|error| panic!("{}: {error}", inputs.display()));
        let mut tried = 0;
        for entry in entries {
            let path = entry.expect("an entry").path();
            let bytes = std::fs::read(&path).expect("readable");
            let done = std::panic::catch_unwind(|| fuzz(&bytes));
            assert!(done.is_ok(), "see above; the input is {}", path.display());
            tried += 1;
        }
        assert!(tried > 0, "{} is empty", inputs.display());
    }
}
