//! The suite of the traits, on RDMA over TCP in user space, in each of its settings.

use leasehold_fabric::iwarp::{Config, Iwarp};

fn fabric(config: Config) -> Iwarp {
    Iwarp::new(config).expect("threads")
}

mod by_default {
    leasehold_fabric::conformance_suite!(super::fabric(super::Config::default()));
}

mod without_crc {
    leasehold_fabric::conformance_suite!(super::fabric(super::Config {
        crc: false,
        ..super::Config::default()
    }));
}

mod strict {
    leasehold_fabric::conformance_suite!(super::fabric(super::Config {
        strict: true,
        ..super::Config::default()
    }));
}

mod by_revision_1_with_short_segments_and_one_thread {
    leasehold_fabric::conformance_suite!(super::fabric(super::Config {
        enhanced: false,
        segment_max: 1000,
        workers: 1,
        ..super::Config::default()
    }));
}
