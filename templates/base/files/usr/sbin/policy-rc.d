#!/bin/sh
# Nothing is init here: a package's service is not started when it is installed.
exit 101
