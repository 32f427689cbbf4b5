# A boot sector that reads the first part of the disk that it came from with the firmware's driver,
# 64 sectors at a time, and tells the serial port a sum of it: each 32-bit word added to the sum so
# far, which is rotated by one bit before.
#
# The count of such reads is patched into the last word before the signature.

    .intel_syntax noprefix
    .code16
    .text
    .globl _start
_start:
    cli
    xor     ax, ax
    mov     ds, ax
    mov     ss, ax
    mov     sp, 0x7c00
    sti
    cld
    mov     [drive], dl

read:
    mov     si, offset packet
    mov     dl, [drive]
    mov     ah, 0x42
    int     0x13
    jc      failed
    mov     ebx, [sum]
    push    ds
    mov     ax, 0x1000
    mov     ds, ax
    xor     si, si
    mov     cx, 64 * 512 / 4
summing:
    lodsd
    rol     ebx, 1
    add     ebx, eax
    loop    summing
    pop     ds
    mov     [sum], ebx
    add     dword ptr [sector], 64
    dec     word ptr [count]
    jnz     read

    mov     si, offset done
    call    text
    mov     cx, 8
digit:
    rol     ebx, 4
    mov     al, bl
    and     al, 15
    add     al, '0'
    cmp     al, '9'
    jbe     plain
    add     al, 'a' - '0' - 10
plain:
    call    letter
    loop    digit
    mov     si, offset end
    call    text
rest:
    hlt
    jmp     rest

failed:
    mov     si, offset refused
    call    text
    jmp     rest

text:
    lodsb
    test    al, al
    jz      return
    call    letter
    jmp     text

letter:
    push    ax
    mov     dx, 0x3fd
busy:
    in      al, dx
    test    al, 0x20
    jz      busy
    pop     ax
    mov     dx, 0x3f8
    out     dx, al
return:
    ret

done:
    .asciz  "booted, sum "
refused:
    .asciz  "the firmware cannot read\n"
end:
    .asciz  " end\n"
drive:
    .byte   0
    .balign 4
sum:
    .long   0
packet:
    .byte   16, 0
    .word   64
    .word   0, 0x1000
sector:
    .long   0, 0

    .org    508
count:
    .word   1
    .word   0xaa55
