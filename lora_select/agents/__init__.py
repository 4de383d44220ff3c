"""What agents call: a server of the Model Context Protocol over the command line, whose long jobs are polled and cancelled."""
