use leasehold_check::check;
use leasehold_core::{promise::Promise, schemes};
use stateright::Model;
fn main() {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let mut total = (0, 0.0);
    for entry in &schemes::ALL {
        let name = entry.scheme.name;
        if !only.is_empty() && !only[0].is_empty() && only[0] != name { continue; }
        let scenarios = check::scenarios();
        let mut broken: [Option<(usize, String)>; 10] = Default::default();
        let mut tested = [false; 10];
        for setting in check::settings(entry, &scenarios) {
            let found = check::run(&setting, &check::bounds(2));
            total.0 += found.states; total.1 += found.elapsed.as_secs_f64();
            if only.len() > 1 {
                println!("  {:?} {:?} {}: {} states {:.1}s depth {} complete {} heap", setting.host, setting.filesystem, setting.scenario.name, found.states, found.elapsed.as_secs_f64(), found.depth, found.complete);
            }
            for p in Promise::ALL {
                let at = p as usize;
                tested[at] |= found.path(["P1 tested","P2 tested","P3 tested","P4 tested","P5 tested","P6 tested","P7 tested","P8 tested","P9 tested","P10 tested"][at]).is_some();
                let mut path = found.path(p.name()).cloned();
                if p == Promise::P5 && path.is_none() { path = found.starved.first().map(|s| s.path.clone()); }
                if let Some(path) = path {
                    let len = path.clone().into_actions().len();
                    if broken[at].as_ref().is_none_or(|(l, _)| len < *l) {
                        let text = format!("{:?} {:?} [{}] {}", setting.host, setting.filesystem, setting.scenario.name,
                            path.into_actions().iter().map(|a| setting.format_action(a)).collect::<Vec<_>>().join("; "));
                        broken[at] = Some((len, text));
                    }
                }
            }
        }
        print!("{name:22}");
        for p in Promise::ALL {
            let at = p as usize;
            let found = if broken[at].is_some() { "Broken" } else if tested[at] { "Kept" } else { "Vacuous" };
            let declared = format!("{:?}", entry.declared(p).0);
            print!(" {}{}", &found[..1], if declared == found { " " } else { "!" });
        }
        println!();
        for p in Promise::ALL {
            let at = p as usize;
            let declared = format!("{:?}", entry.declared(p).0);
            let found = if broken[at].is_some() { "Broken" } else if tested[at] { "Kept" } else { "Vacuous" };
            if declared != found { println!("   {p}: {found}, declared {declared}: {}", broken[at].as_ref().map_or("", |b| &b.1)); }
        }
    }
    println!("{} states in {:.1} s", total.0, total.1);
}
