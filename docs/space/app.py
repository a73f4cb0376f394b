from fz.web import main

main(["--host", "0.0.0.0", "--no-password"])
