//! Decides: the dataflow from lanes to deliveries. The only crate that names timely.
