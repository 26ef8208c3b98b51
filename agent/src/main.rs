fn main() {
    roost_agent::start::main();
}
