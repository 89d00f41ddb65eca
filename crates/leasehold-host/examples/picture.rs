//! Draws what a terminal would show, as SVG: coloured text on standard input, the picture on standard output.
//!
//! `CLICOLOR_FORCE=1 leasehold audit | cargo run -p leasehold-host --example picture > audit.svg`

use std::io::{self, Read as _, Write as _};

fn main() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let picture = anstyle_svg::Term::new().min_width_px(700).render_svg(&text);
    io::stdout().write_all(picture.as_bytes())
}
