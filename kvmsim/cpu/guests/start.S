/* A vCPU begins here, with its number in RDI: a stack for each of four, main(number), then halted for good. */
	.globl _start
_start:
	mov %rdi, %rax
	inc %rax
	shl $12, %rax
	lea stacks(%rax), %rsp
	call main
1:	hlt
	jmp 1b

	.bss
	.balign 4096
stacks:	.skip 4 * 4096
	.section .note.GNU-stack, "", @progbits
