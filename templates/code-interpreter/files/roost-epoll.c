/* A registration is emptied before it is taken out of an epoll instance.
 *
 * gVisor (20240729) reports what was taken out once more in a machine that goes on from saved memory. ZeroMQ registers
 * addresses, freed by then, and would follow them. What is reported of an empty registration is nothing. Preloaded by
 * roost-kernel; the agent does the same for itself (agent/src/epoll.rs). */
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

static long control(int instance, int operation, int descriptor, struct epoll_event *event)
{
	return syscall(SYS_epoll_ctl, instance, operation, descriptor, event);
}

int epoll_ctl(int instance, int operation, int descriptor, struct epoll_event *event)
{
	if (operation == EPOLL_CTL_DEL) {
		/* Errors are reported unasked: edge-triggered and once, or nothing would ever take them. */
		struct epoll_event empty = { .events = EPOLLET | EPOLLONESHOT };
		control(instance, EPOLL_CTL_MOD, descriptor, &empty);
	}
	return (int)control(instance, operation, descriptor, event);
}
